"""Places to look at in a running stack: voting page, console, figures and the gateway."""

from __future__ import annotations

import json
import urllib.request

from deploy.local.stack import Stack

RATER = "you"
TIMEOUT_S = 10.0


def places(stack: Stack) -> list[str]:
    """A line for each place, with what it shows; the voting page by an invite of a week."""
    return [
        f"voting page  {_invite(stack.url('feedback'))}",
        f"console      {stack.url('rollout')}/  (rollouts, versions, trainings, the week's report)",
        f"Prometheus   {stack.url('prometheus')}/alerts",
        f"gateway      {stack.url('router')}/v1  (OpenAI's API, model assistant)",
        "command      .venv/bin/ratchet status",
    ]


def _invite(feedback: str) -> str:
    request = urllib.request.Request(
        f"{feedback}/v1/invites",
        json.dumps({"user_id": RATER}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return feedback + json.load(answer)["path"]
    except (OSError, ValueError, KeyError) as error:
        return f"{feedback}/vote/  (no invite: {error})"
