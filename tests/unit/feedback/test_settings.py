"""Settings of the feedback service that name files."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.feedback.settings import FeedbackSettings
from services.feedback.voting.mount import VotingOptions
from shared.credentials import CredentialsUnreadable


def test_without_a_secret_the_voting_page_is_off() -> None:
    options = VotingOptions.of(FeedbackSettings())
    assert options.sign_in is None
    assert options.authorization == ""


def test_secret_key_and_plan_come_from_their_files(tmp_path: Path) -> None:
    for name, text in (("secret", "s" * 32 + "\n"), ("key", "rk_1\n"), ("plan", "goal: 7\n")):
        (tmp_path / name).write_text(text)
    settings = FeedbackSettings(
        voting_secret_file=tmp_path / "secret",
        router_api_key_file=tmp_path / "key",
        voting_plan_file=tmp_path / "plan",
        voting_session_hours=1,
    )
    options = VotingOptions.of(settings)
    assert options.sign_in is not None
    assert options.sign_in.secret == "s" * 32
    assert options.sign_in.session_s == 3600
    assert options.sign_in.secure is False
    assert options.authorization == "Bearer rk_1"
    assert options.plan.goal == 7


def test_cookies_are_secure_outside_the_local_profile(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s" * 32)
    settings = FeedbackSettings(
        profile="production",
        kafka_security_protocol="PLAINTEXT",
        voting_secret_file=tmp_path / "secret",
    )
    sign_in = VotingOptions.of(settings).sign_in
    assert sign_in is not None
    assert sign_in.secure is True


@pytest.mark.parametrize(("text", "said"), [("short", "at least 32 are needed"), ("", "is empty")])
def test_a_bad_secret_is_refused_by_its_variable(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    with pytest.raises(
        CredentialsUnreadable, match=rf"^RATCHET_FEEDBACK_VOTING_SECRET_FILE: .*{said}"
    ):
        VotingOptions.of(FeedbackSettings(voting_secret_file=file))
