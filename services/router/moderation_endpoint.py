"""Moderation endpoint: asks an OpenAI-compatible `POST /v1/moderations` whether an answer may be shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp
import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from services.router.filter_rules import FilterFindings
from shared.contracts.events.interactions import FilterAction
from shared.credentials import CredentialsUnreadable
from shared.http.answers import read_answer
from shared.http.client import request_within
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

PATH = "/v1/moderations"
HTTP_OK = 200
RULE = "moderation"
"""What the findings of the endpoint begin with in events and metrics."""
UNAVAILABLE = f"{RULE}/unavailable"
OTHER = "other"
CATEGORIES = frozenset(
    (
        *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
        *("illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent"),
        *("sexual", "sexual/minors", "violence", "violence/graphic"),
    )
)
"""Of the OpenAI API; any other is OTHER, so that metrics' labels are a closed set."""
PIECE = 32_768
"""Characters of one input; a longer text is several."""
MAX_INPUTS = 128
"""Inputs of one answer; one that has more cannot be judged."""
MAX_VERDICT_BYTES = 1024 * 1024
LOG_EVERY_S = 10.0
OUTCOMES = ("passed", "flagged", "timeout", "failed", "busy")


@dataclass(frozen=True, slots=True)
class ModerationPolicy:
    """How the endpoint is asked, and what follows."""

    url: str
    action: FilterAction = FilterAction.block
    """What a flagged answer gets: `flag` or `block`."""
    fail_open: bool = False
    """Whether an answer that could not be judged is shown."""
    model: str = ""
    """The endpoint's model; empty: its own default."""
    timeout_s: float = 2.0
    max_running: int = 64


class ModerationEndpoint:
    """Judges texts with a deadline, so many at a time."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        policy: ModerationPolicy,
        headers: Callable[[], dict[str, str]],
        registry: CollectorRegistry,
    ) -> None:
        """`headers` gives those with the endpoint's key, as its file has it now."""
        self._session = session
        self._policy = policy
        self._headers = headers
        self._running = 0
        self._said_at = -LOG_EVERY_S
        self._judged = Counter(
            "ratchet_router_moderations",
            "Questions to the moderation endpoint, by what came of them",
            ("outcome",),
            registry=registry,
        )
        self._seconds = Histogram(
            "ratchet_router_moderation_seconds",
            "One answer of the moderation endpoint.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._judged.labels(outcome)

    async def judge(self, texts: Sequence[str], findings: FilterFindings) -> None:
        """Add to the findings what the endpoint says of an answer's texts, or that it said nothing."""
        inputs = [
            text[at : at + PIECE] for text in texts if text for at in range(0, len(text), PIECE)
        ]
        if not inputs:
            return
        outcome, categories = await self._ask(inputs)
        self._judged.labels(outcome).inc()
        if outcome in ("passed", "flagged"):
            for category in categories:
                findings.add(f"{RULE}/{category}", self._policy.action)
            return
        unknown = FilterAction.flag if self._policy.fail_open else FilterAction.block
        findings.add(UNAVAILABLE, unknown)

    async def _ask(self, inputs: list[str]) -> tuple[str, set[str]]:
        """The outcome, and what was flagged."""
        if self._running >= self._policy.max_running:
            return "busy", set()
        if len(inputs) > MAX_INPUTS:
            return "failed", set()
        self._running += 1
        began = perf_counter()
        try:
            flagged = await self._post(inputs)
        except TimeoutError:
            self._say(f"no answer in {self._policy.timeout_s:g} s")
            return "timeout", set()
        except (aiohttp.ClientError, CredentialsUnreadable, OSError, ValueError) as error:
            self._say(str(error) or type(error).__name__)
            return "failed", set()
        finally:
            self._running -= 1
        self._seconds.observe(perf_counter() - began)
        return ("flagged" if flagged else "passed"), flagged

    async def _post(self, inputs: list[str]) -> set[str]:
        body: dict[str, Any] = {"input": inputs}
        if self._policy.model:
            body["model"] = self._policy.model
        async with request_within(
            self._policy.timeout_s,
            self._session,
            "POST",
            self._policy.url + PATH,
            data=orjson.dumps(body),
            headers={"content-type": "application/json", **self._headers()},
            allow_redirects=False,
        ) as answer:
            if answer.status != HTTP_OK:
                raise ValueError(f"it answered {answer.status}")
            verdict = await read_answer(answer, limit=MAX_VERDICT_BYTES)
            return flagged_categories(verdict, len(inputs))

    def _say(self, why: str) -> None:
        """Log a failure; of many, one in LOG_EVERY_S."""
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= LOG_EVERY_S:
            self._said_at = now
            log.warning(Unavailable.moderation, url=self._policy.url, error=why)


def flagged_categories(verdict: bytes, inputs: int) -> set[str]:
    """Categories in which any input is flagged; OTHER where it is flagged in none that is known.

    Raises:
        ValueError: it is no answer of a moderation endpoint to so many inputs.

    """
    value: Any = orjson.loads(verdict)
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list) or len(results) != inputs:
        raise ValueError(f"results: must be a list of {inputs}, one for each input")
    found: set[str] = set()
    for result in results:
        flagged = result.get("flagged") if isinstance(result, dict) else None
        if not isinstance(flagged, bool):
            raise ValueError("results: each must have `flagged`, true or false")  # noqa: TRY004
        if flagged:
            named = result.get("categories")
            given = named.items() if isinstance(named, dict) else ()
            found |= {name for name, is_so in given if is_so is True} & CATEGORIES or {OTHER}
    return found
