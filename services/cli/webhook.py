"""Posts to a webhook: one message, whose text Slack, Mattermost and Teams' workflows take.

Not by `shared/http/webhooks.py`, the services': a command waits for the answer, since its exit code
says what became of the report, and a chat's address is itself the secret, so nothing is signed.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from services.cli.errors import CliError, Exit, reason_of
from shared.backoff import PASSING_REFUSALS
from shared.webhook_message import WebhookMessage

TIMEOUT_S = 10.0
PAUSES_S = (1.0, 2.0, 4.0)
"""Between the attempts, of which there is one more."""
MAX_TEXT = 3_000


def read_webhook(path: Path) -> str:
    """The address in a file; it is a secret, and no message has more of it than its host.

    Raises:
        CliError: the file cannot be read, or holds no address.

    """
    try:
        url = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: cannot be read: {error}", Exit.usage) from None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise CliError(f"{path}: must hold one address that begins with https://", Exit.usage)
    return url


def post_message(url: str, message: WebhookMessage) -> None:
    """Post a message, its text cut to MAX_TEXT characters; tried again where the answer may change.

    Raises:
        CliError: refused, or no answer after the last attempt.

    """
    host = urlsplit(url).hostname
    body = json.dumps(message.body() | {"text": message.text[:MAX_TEXT]}).encode()
    for pause_s in (*PAUSES_S, None):
        refusal, for_good = _post(url, body)
        if not refusal:
            return
        if for_good or pause_s is None:
            raise CliError(
                f"the webhook at {host} did not take the message: {refusal}",
                Exit.refused if for_good else Exit.unreachable,
            )
        time.sleep(pause_s)


def _post(url: str, body: bytes) -> tuple[str, bool]:
    """Why the message was not taken, empty where it was, and whether that is for good."""
    headers = {"content-type": "application/json"}
    # The address has been checked: http and https only.
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            return "", False
    except urllib.error.HTTPError as error:
        with error:
            return (
                f"status {error.code}",
                400 <= error.code < 500 and error.code not in PASSING_REFUSALS,
            )
    except (OSError, http.client.HTTPException, ValueError) as error:
        return reason_of(error), False
