"""Default feedback ids: what identifies feedback or a signal that came without an id of its own."""

from __future__ import annotations

import uuid
from enum import StrEnum

from shared.contracts.events.feedback import RATINGS, FeedbackType
from shared.uuid5 import uuid5_text

FEEDBACK_NAMESPACE = uuid.UUID("6f1c1f0e-6a35-5a3c-9d0a-2f6a4f0c7d11")
"""Namespace of default feedback ids; never changes, as identity hangs on it."""
_NAMESPACE_BYTES = FEEDBACK_NAMESPACE.bytes


def default_feedback_id(tenant: str, trace_id: str, user_id: str, kind: StrEnum) -> str:
    """The default id: one per tenant, trace and user for thumbs and ratings, else per type too.

    Thumbs and ratings share the id of `thumbs_up`: a person has one opinion of an answer.
    """
    shared = FeedbackType.thumbs_up if kind in RATINGS else kind
    return typed_feedback_id(tenant, trace_id, user_id, shared)


def typed_feedback_id(tenant: str, trace_id: str, user_id: str, kind: StrEnum) -> str:
    """The id of exactly this type, which thumbs and ratings had before they shared one."""
    return uuid5_text(_NAMESPACE_BYTES, f"{tenant}\0{trace_id}\0{user_id}\0{kind}")
