"""Trace ids in W3C Trace Context form."""

from __future__ import annotations

import hashlib
import re
import secrets

_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?$")
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
SPAN_ID = slice(36, 52)
"""Where the parent or span id stands in a `traceparent`."""
_NO_TRACE = "0" * 32


def parse_traceparent(header: str) -> str | None:
    """The trace id of a `traceparent` header, or None where it is not a valid one."""
    found = _TRACEPARENT.match(header)
    if found is None or found[1] == _NO_TRACE or header.startswith("ff"):
        return None
    return found[1]


def is_trace_id(text: str) -> bool:
    """Whether this is a trace id of Trace Context, which one that a client made may not be."""
    return _TRACE_ID.fullmatch(text) is not None and text != _NO_TRACE


def rebuilt_traceparent(header: str) -> str:
    """A `traceparent` rebuilt from its parsed fields: 55 characters, or empty where it is invalid.

    A later version of the header may be longer; what stands behind is not passed on, as a header
    of a megabyte makes a record that the brokers refuse.
    """
    return f"00-{header[3:55]}" if parse_traceparent(header) else ""


def is_sampled(header: str) -> bool:
    """Whether a valid `traceparent` says that its trace is sampled."""
    return parse_traceparent(header) is not None and bool(int(header[53:55], 16) & 1)


def traceparent(trace_id: str) -> str:
    """A sampled `traceparent` of this trace with a new parent id."""
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"


def derived_traceparent(trace_id: str, cause: str, *, sampled: bool = False) -> str:
    """A `traceparent` whose parent id follows from `cause`, so that a repeat has the same.

    Empty where `trace_id`, which a client may have made, is none of Trace Context.
    """
    span = hashlib.sha256(cause.encode()).hexdigest()[:16]
    return rebuilt_traceparent(f"00-{trace_id}-{span}-{sampled:02x}")


def interaction_traceparent(trace_id: str) -> str:
    """The span of an answer's interaction, sampled, which follows from its trace id alone.

    Empty where a client made the id and it is none of Trace Context.
    """
    return derived_traceparent(trace_id, "interaction", sampled=True)


def derived_trace_id(name: str) -> str:
    """The trace id of something long-lived on the log, such as a job: 32 hex digits of its name."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def run_traceparent(job_id: str, *, sampled: bool) -> str:
    """The span of a training run, which follows from the job's id."""
    return derived_traceparent(derived_trace_id(job_id), "run", sampled=sampled)
