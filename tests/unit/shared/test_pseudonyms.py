"""Hashed user ids: the same in router and feedback, another in every tenant, nothing to read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.feedback.settings import FeedbackSettings
from services.feedback.submissions import SubmissionRules, read_submission, read_withdrawal
from services.feedback.submissions import submitted as submitted_of
from services.feedback.submissions import withdrawn as withdrawn_of
from services.router.settings import RouterSettings
from shared.contracts.feedback_id import default_feedback_id
from shared.credentials import CredentialsUnreadable
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms

AT = datetime(2026, 1, 2, tzinfo=UTC)
KEYED = UserPseudonyms(b"s" * 32)
RULES = SubmissionRules(pseudonyms=KEYED)


def test_a_user_has_one_id_in_a_tenant_and_others_elsewhere() -> None:
    stored = KEYED.of("acme", "jane@example.com")
    assert stored == UserPseudonyms(b"s" * 32).of("acme", "jane@example.com")
    others = (
        KEYED.of("umbrella", "jane@example.com"),
        KEYED.of("acme", "john@example.com"),
        UserPseudonyms(b"t" * 32).of("acme", "jane@example.com"),
    )
    assert stored not in others
    assert "jane" not in stored
    assert KEYED.of("acme", "") == ""
    assert AS_THEY_COME.of("acme", "jane") == "jane"


def test_identity_goes_by_the_stored_id_so_a_thumb_changed_is_one_feedback() -> None:
    body = {"trace_id": "t", "type": "thumbs_up", "user_id": "jane"}
    event = submitted_of(
        read_submission(body), tenant="acme", at=AT, redact=lambda text: text, rules=RULES
    )
    assert event.user_id == KEYED.of("acme", "jane")
    # The aggregator lets a type change only where the id follows from the event's own user.
    assert event.feedback_id == default_feedback_id("acme", "t", event.user_id, event.type)
    taken = withdrawn_of(
        read_withdrawal({"trace_id": "t", "feedback_id": event.feedback_id, "user_id": "jane"}),
        tenant="acme",
        at=AT,
        rules=RULES,
    )
    assert (taken.feedback_id, taken.user_id) == (event.feedback_id, event.user_id)


def test_router_and_feedback_read_one_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 32 + "\n")
    monkeypatch.setenv("RATCHET_USER_ID_KEY_FILE", str(secret))
    router, feedback = RouterSettings.load(), FeedbackSettings.load()
    assert router.user_pseudonyms().of("acme", "jane") == KEYED.of("acme", "jane")
    assert feedback.rules.pseudonyms.of("acme", "jane") == KEYED.of("acme", "jane")


@pytest.mark.parametrize("content", ["", "short"])
def test_a_secret_that_is_none_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(content)
    monkeypatch.setenv("RATCHET_USER_ID_KEY_FILE", str(secret))
    with pytest.raises(CredentialsUnreadable, match="RATCHET_USER_ID_KEY_FILE"):
        RouterSettings.load().user_pseudonyms()
