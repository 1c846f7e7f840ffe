"""HTTP client of the adapter agents: is the engine up, and does it serve the candidate."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from services.rollout.state import EngineReport

TIMEOUT_S = 2.0
SERVING = "ready"
PEOPLE_DECIDE = "too_close"
"""The one fault of a refused adapter that a person may overrule at its agent (invariant 8)."""


class Agents:
    """The adapter agents of all inference replicas."""

    def __init__(self, session: aiohttp.ClientSession, urls: tuple[str, ...]) -> None:
        self._session = session
        self._urls = urls

    async def reports(self, candidate: str) -> dict[str, EngineReport]:
        """Each agent's report, by its URL. An agent that does not answer is reported as such."""
        reports = await asyncio.gather(*(self._report(url, candidate) for url in self._urls))
        return dict(zip(self._urls, reports, strict=True))

    async def _report(self, url: str, candidate: str) -> EngineReport:
        try:
            async with self._session.get(
                f"{url.rstrip('/')}/v1/adapters",
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as response:
                response.raise_for_status()
                body: Any = await response.json(content_type=None)
            return read(body, candidate)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return EngineReport(ready=None, detail=str(error) or type(error).__name__)


def read(body: object, candidate: str) -> EngineReport:
    """An agent's answer, as far as it is about the engine and the candidate.

    Raises:
        ValueError: it is not an agent's answer.

    """
    if not isinstance(body, dict) or not isinstance(body.get("engine"), dict):
        raise ValueError("the answer has no engine")  # noqa: TRY004
    engine: dict[str, Any] = body["engine"]
    ready, generation = engine.get("ready"), engine.get("generation")
    if not isinstance(ready, bool) or not isinstance(generation, int):
        raise ValueError("engine: ready must be a boolean and generation a whole number")  # noqa: TRY004
    adapters = body.get("adapters")
    found: dict[str, Any] = next(
        (
            one
            for one in (adapters if isinstance(adapters, list) else [])
            if isinstance(one, dict) and one.get("version") == candidate
        ),
        {},
    )
    state = str(found.get("state", ""))
    reason = str(found.get("reason") or "")
    undecided = state == "refused" and found.get("fault") == PEOPLE_DECIDE
    return EngineReport(
        ready=ready,
        generation=generation,
        candidate_ready=ready and state == SERVING,
        refused=(reason or "no reason given") if state == "refused" and not undecided else "",
        undecided=undecided,
        detail=f"{state}: {reason}".strip(": "),
    )
