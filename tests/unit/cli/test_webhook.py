"""The webhook of the weekly report: what is posted, tried again, and said where it fails."""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from services.cli import webhook
from services.cli.errors import CliError, Exit
from shared.webhook_message import WebhookMessage

REPORT = WebhookMessage(
    "report.weekly", "w", datetime(2026, 11, 30, tzinfo=UTC), "report", {"n": 1}
)
URL = "https://hooks.example.com/services/secret"


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Texts that were posted; `answers` are statuses in turn, the last one for ever."""
    seen: dict[str, Any] = {"texts": [], "bodies": [], "pauses": [], "answers": [200]}

    def urlopen(request: urllib.request.Request, **_: Any) -> Any:
        assert isinstance(request.data, bytes)
        seen["bodies"].append(json.loads(request.data))
        seen["texts"].append(seen["bodies"][-1]["text"])
        answers = seen["answers"]
        status = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:
            raise OSError("no route")
        if status == 1:
            raise http.client.BadStatusLine("no HTTP")
        if status >= 400:
            raise urllib.error.HTTPError(URL, status, "", Message(), io.BytesIO())
        return io.BytesIO()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(webhook.time, "sleep", seen["pauses"].append)
    return seen


def test_a_message_is_posted_once_and_its_text_no_longer_than_chats_take(
    posted: dict[str, Any],
) -> None:
    webhook.post_message(URL, replace(REPORT, text="x" * 5_000))
    assert posted["texts"] == ["x" * webhook.MAX_TEXT]
    assert posted["bodies"][0]["data"] == {"n": 1}
    assert posted["pauses"] == []


def test_what_may_change_is_tried_again(posted: dict[str, Any]) -> None:
    posted["answers"] = [503, 429, 1, 200]
    webhook.post_message(URL, REPORT)
    assert len(posted["texts"]) == 4
    assert posted["pauses"] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "attempts", "status"),
    [(404, 1, Exit.refused), (0, 4, Exit.unreachable), (1, 4, Exit.unreachable)],
)
def test_a_failure_names_the_host_and_never_the_address(
    posted: dict[str, Any], answer: int, attempts: int, status: Exit
) -> None:
    posted["answers"] = [answer]
    with pytest.raises(CliError, match=r"the webhook at hooks\.example\.com") as failed:
        webhook.post_message(URL, REPORT)
    assert "secret" not in str(failed.value)
    assert failed.value.status == status
    assert len(posted["texts"]) == attempts


@pytest.mark.parametrize("text", ["", "hooks.example.com", "file:///etc/passwd", "https://"])
def test_a_file_without_an_address_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "url").write_text(text)
    with pytest.raises(CliError, match="must hold one address"):
        webhook.read_webhook(tmp_path / "url")


def test_an_address_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{URL}\n")
    assert webhook.read_webhook(tmp_path / "url") == URL
    with pytest.raises(CliError, match="cannot be read"):
        webhook.read_webhook(tmp_path / "none")
