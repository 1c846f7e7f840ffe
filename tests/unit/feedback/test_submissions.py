"""Identity, values, redaction and contexts of what products send."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feedback.errors import FeedbackError, Invalid
from services.feedback.submissions import (
    REVISION_EPOCH,
    read_submission,
    read_withdrawal,
    submitted,
    withdrawn,
)
from shared.contracts.events.base import Context, EncryptedTexts
from shared.contracts.events.feedback import (
    RATINGS,
    Correction,
    FeedbackSubmitted,
    FeedbackType,
    Preference,
)
from shared.contracts.feedback_id import FEEDBACK_NAMESPACE, default_feedback_id, typed_feedback_id
from shared.redaction.redactor import Redactor

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
REDACT = Redactor().text
identifiers = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(identifiers, identifiers, identifiers, st.sampled_from(FeedbackType))
def test_default_id_is_the_uuid5_of_its_parts(
    tenant: str, trace_id: str, user_id: str, kind: FeedbackType
) -> None:
    expected = uuid.uuid5(FEEDBACK_NAMESPACE, f"{tenant}\0{trace_id}\0{user_id}\0{kind.value}")
    assert typed_feedback_id(tenant, trace_id, user_id, kind) == str(expected)
    opinion = FeedbackType.thumbs_up if kind in RATINGS else kind
    default = default_feedback_id(tenant, trace_id, user_id, kind)
    assert default == typed_feedback_id(tenant, trace_id, user_id, opinion)


def test_the_namespace_never_changes() -> None:
    kind = FeedbackType.thumbs_up
    known = default_feedback_id("default", "4bf92f3577b34da6a3ce929d0e0e4736", "u1", kind)
    assert known == str(
        uuid.uuid5(
            uuid.UUID("6f1c1f0e-6a35-5a3c-9d0a-2f6a4f0c7d11"),
            "default\x004bf92f3577b34da6a3ce929d0e0e4736\0u1\0thumbs_up",
        )
    )


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "trace_id",
                "type",
                "value",
                "revision",
                "user_id",
                "feedback_id",
                "prompt",
                "completion",
                "source",
                "model",
                "metadata",
            ]
        )
        | st.text(max_size=6),
        json_values | st.sampled_from([kind.value for kind in FeedbackType]),
        max_size=8,
    ),
    st.booleans(),
)
def test_any_json_object_is_stored_as_a_valid_event_or_refused_with_words(
    body: dict[str, Any], clamp: bool
) -> None:
    refusal: FeedbackError | None = None
    try:
        event = submitted(read_submission(body, clamp=clamp), tenant="t", at=AT, redact=REDACT)
    except FeedbackError as error:
        refusal = error
    else:
        validated = FeedbackSubmitted.model_validate_json(event.to_json())
        assert validated == event
        assert validated.model_dump_json().encode() == event.to_json()
    if refusal is not None:
        assert refusal.detail
        assert all(field.field and field.rule and field.remedy for field in refusal.fields)


@given(st.integers(), st.booleans())
def test_ratings(value: int, clamp: bool) -> None:
    body = {"trace_id": "t", "type": "rating", "value": value}
    if clamp or 1 <= value <= 5:
        assert read_submission(body, clamp=clamp).value == min(max(value, 1), 5)
    else:
        with pytest.raises(Invalid, match="1 to 5"):
            read_submission(body, clamp=clamp)


def test_the_same_body_gives_the_same_bytes() -> None:
    body = {"trace_id": "t", "type": "comment", "value": "call 0151 2345 6789", "user_id": "u"}
    events = [submitted(read_submission(body), tenant="t", at=AT, redact=REDACT) for _ in range(2)]
    assert events[0].to_json() == events[1].to_json()


@pytest.mark.parametrize(
    "more",
    [
        {"value": Correction(original="ä\n\x7f\u2028", corrected='"')},
        {"value": Preference(chosen="a", rejected="b", chosen_version="v")},
        {"source": "old", "model": "m", "asker": "u", "prompt": "p", "completion": "c"},
        {"encrypted": EncryptedTexts(keys=("k", "l"), data="d")},
        {"given_at": datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=-3, minutes=-30)))},
        {"context": Context(session_id="s", labels={"plan": "gold"}), "by_receipt": True},
    ],
)
def test_feedback_is_written_as_the_models_own_serializer_would(more: dict[str, Any]) -> None:
    event = FeedbackSubmitted.unvalidated(
        {"feedback_id": "f", "trace_id": "t", "tenant": "t", "type": FeedbackType.comment,
         "value": "v", "submitted_at": AT, **more}
    )  # fmt: skip
    assert event.to_json() == event.model_dump_json().encode()


def test_an_event_made_without_validation_is_the_one_that_validation_gives() -> None:
    metadata = {"locale": "en", "plan": "gold"}
    body = {"trace_id": "t", "type": "rating", "value": 4, "user_id": "u", "metadata": metadata}
    event = submitted(read_submission(body), tenant="t", at=AT, redact=REDACT)
    assert list(vars(event)) == list(FeedbackSubmitted.model_fields)
    validated = FeedbackSubmitted(**vars(event))
    assert validated == event
    assert validated.to_json() == event.to_json()
    assert event.model_copy(update={"value": 5}).value == 5


def test_redaction_that_makes_a_text_too_long_is_refused() -> None:
    text = "a@b.co " * 14_000
    body = {
        "trace_id": "t", "type": "thumbs_up", "source": "s", "model": "m", "prompt": text,
        "completion": "ok",
    }  # fmt: skip
    with pytest.raises(Invalid, match="prompt"):
        submitted(read_submission(body), tenant="t", at=AT, redact=REDACT)


def test_all_of_a_context_but_the_sessions_id_is_redacted() -> None:
    session = "4111111111111111"
    metadata = {"segment": "joe@example.com", "session_id": session, "note": "+49 170 1234567"}
    body = {"trace_id": "t", "type": "thumbs_up", "metadata": metadata}
    event = submitted(read_submission(body), tenant="acme", at=AT, redact=REDACT)
    assert (event.context.segment, event.context.session_id) == ("[EMAIL]", session)
    assert event.context.labels == {"note": "[PHONE]"}


def test_the_topics_or_keys_tenant_may_be_repeated_in_the_metadata() -> None:
    body = {"trace_id": "t", "type": "thumbs_up", "metadata": {"tenant": "acme", "plan": "gold"}}
    event = submitted(read_submission(body), tenant="acme", at=AT, redact=REDACT)
    assert event.context.labels == {"plan": "gold"}
    with pytest.raises(Invalid, match=r"metadata\.tenant"):
        submitted(read_submission(body), tenant="other", at=AT, redact=REDACT)


@given(st.sampled_from(FeedbackType), identifiers, identifiers)
def test_a_withdrawal_finds_the_type_of_a_default_id(
    kind: FeedbackType, trace_id: str, user_id: str
) -> None:
    place = ("t", trace_id, user_id)
    opinion = FeedbackType.thumbs_up if kind in RATINGS else kind
    for feedback_id, found in (
        (default_feedback_id(*place, kind), opinion),
        (typed_feedback_id(*place, kind), kind),
    ):
        body = {"trace_id": trace_id, "feedback_id": feedback_id, "user_id": user_id}
        event = withdrawn(read_withdrawal(body), tenant="t", at=AT)
        assert event.type is found
        assert event.by_receipt
        assert event.revision == int((AT - REVISION_EPOCH).total_seconds())
        assert not withdrawn(read_withdrawal(body | {"revision": 3}), tenant="t", at=AT).by_receipt


@pytest.mark.parametrize(
    ("more", "by_receipt"),
    [({}, True), ({"revision": 0}, True), ({"revision": 1}, False), ({"feedback_id": "f"}, False)],
)
def test_only_feedback_without_id_and_revision_is_ordered_by_receipt(
    more: dict[str, Any], by_receipt: bool
) -> None:
    submission = read_submission({"trace_id": "t", "type": "thumbs_up", **more})
    event = submitted(submission, tenant="t", at=AT, redact=REDACT)
    assert event.by_receipt is by_receipt
    named = submitted(submission, tenant="t", at=AT, redact=REDACT, fallback_id="key")
    assert not named.by_receipt


def test_withdrawal_revisions_grow_and_fit_until_2088() -> None:
    body = {"trace_id": "t", "feedback_id": "f", "type": "comment"}
    revisions = [
        withdrawn(read_withdrawal(body), tenant="t", at=datetime(year, 1, 1, tzinfo=UTC)).revision
        for year in (2026, 2027, 2088)
    ]
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize("revision", ["0", "-1", "x", "4294967296"])
def test_a_withdrawals_revision_is_1_or_more(revision: str) -> None:
    with pytest.raises(Invalid, match="revision"):
        read_withdrawal({"trace_id": "t", "feedback_id": "f", "revision": revision})


@pytest.mark.parametrize(
    ("age", "taken"),
    [
        (timedelta(0), True),
        (timedelta(days=7), True),
        (timedelta(days=30), True),
        (timedelta(days=30, seconds=1), False),
        (timedelta(minutes=-5), True),
        (timedelta(minutes=-5, seconds=-1), False),
    ],
)
def test_own_timestamp(age: timedelta, taken: bool) -> None:
    """Case own-timestamp: kept within bounds, while order and caps go by the receipt."""
    timestamp = (AT - age).isoformat()
    body = {"trace_id": "T", "type": "thumbs_up", "user_id": "u", "timestamp": timestamp}
    if taken:
        event = submitted(read_submission(body), tenant="t", at=AT, redact=REDACT)
        assert (event.given_at, event.submitted_at) == (AT - age, AT)
        validated = FeedbackSubmitted.model_validate_json(event.to_json())
        assert validated == event
        assert validated.to_json() == event.to_json()
    else:
        with pytest.raises(Invalid, match=r"timestamp: is more than 30 days"):
            submitted(read_submission(body), tenant="t", at=AT, redact=REDACT)


@pytest.mark.parametrize("timestamp", ["2026-11-18T09:00:00", "yesterday", True, []])
def test_an_own_timestamp_has_a_zone(timestamp: object) -> None:
    with pytest.raises(Invalid, match=r"timestamp: .*such as 2026-11-18T09:00:00Z"):
        read_submission({"trace_id": "T", "type": "thumbs_up", "timestamp": timestamp})


BROUGHT = {
    "trace_id": "log-1",
    "type": "thumbs_up",
    "source": "langfuse",
    "model": "assistant",
    "prompt": "How do I reset it?",
    "completion": "Hold the button.",
}


@pytest.mark.parametrize("name", ["prompt", "completion", "version", "model"])
def test_what_nothing_would_read_is_refused_and_says_how_it_would_be(name: str) -> None:
    body = {"trace_id": "t", "type": "thumbs_up", name: "x"}
    with pytest.raises(Invalid, match=f"{name}: is recorded .* name in source"):
        read_submission(body)


@pytest.mark.parametrize("name", ["prompt", "completion", "model"])
def test_a_source_needs_what_an_interaction_is_made_of(name: str) -> None:
    with pytest.raises(Invalid, match=f"{name}: is required where source is named"):
        read_submission({**BROUGHT, name: " "})


def test_a_foreign_answer_has_a_trace_id_that_no_router_gives() -> None:
    event = submitted(read_submission(BROUGHT), tenant="t", at=AT, redact=REDACT)
    assert isinstance(event, FeedbackSubmitted)
    assert event.trace_id == "langfuse:log-1"
    assert (event.source, event.model, event.prompt) == (
        "langfuse", "assistant", "How do I reset it?"
    )  # fmt: skip
