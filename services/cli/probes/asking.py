"""Questions to one version through the router, several at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from services.cli.http import fetch
from services.cli.settings import CliSettings

ANSWER_TIMEOUT_S = 120.0
HTTP_OK = 200
MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Asking:
    """How the questions are asked."""

    version: str
    max_tokens: int = 256
    workers: int = 8
    timeout_s: float = ANSWER_TIMEOUT_S
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A version's answer, or why there is none."""

    text: str = ""
    failure: str = ""


def ask_all(
    settings: CliSettings, asking: Asking, conversations: Sequence[Sequence[dict[str, str]]]
) -> list[ProbeAnswer]:
    """The version's answers, in the order of the conversations; a failed one stops no other.

    Each is asked with the purpose `evaluation`, so that no rollout counts it.
    """
    with ThreadPoolExecutor(max_workers=asking.workers) as pool:
        return list(pool.map(lambda turns: _ask(settings, asking, turns), conversations))


def _ask(settings: CliSettings, asking: Asking, turns: Sequence[dict[str, str]]) -> ProbeAnswer:
    body = {
        "model": asking.version,
        "messages": list(turns),
        "temperature": asking.temperature,
        "max_tokens": asking.max_tokens,
    }
    url = f"{settings.url('router')}/v1/chat/completions"
    headers = {"x-ratchet-purpose": "evaluation"}
    try:
        status, text = fetch(
            settings, url, method="POST", body=body, headers=headers, timeout_s=asking.timeout_s
        )
        data: Any = json.loads(text)
        if status != HTTP_OK:
            return ProbeAnswer(failure=f"{status}: {data['error']['message']}"[:MAX_REASON])
        message = data["choices"][0]["message"]
        return ProbeAnswer(text=message.get("content") or message.get("refusal") or "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return ProbeAnswer(failure=str(error)[:MAX_REASON] or type(error).__name__)
