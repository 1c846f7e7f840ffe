"""HTTP client of the inference replicas: what their engines serve, and scores of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import structlog

from services.rollout.state import EngineReport
from shared.http.answers import read_json
from shared.http.client import request_within
from shared.http.reward_scores import NotScored, RewardScores, ScoredAnswer
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_SAID = 500
"""Characters of an agent's words that a decision carries: brokers refuse records that are too large."""
SERVING = "ready"
PEOPLE_DECIDE = "too_close"
"""The one fault of a refused adapter that a person may overrule at its agent (invariant 8)."""
ELSEWHERE = "elsewhere"
"""State of an adapter that is of another base than the engine serves."""


class Agents:
    """The adapter agents of all inference replicas.

    `authorization` gives the header with which answers are scored: that needs a key.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: tuple[str, ...],
        authorization: Callable[[], str] = str,
    ) -> None:
        self._session = session
        self._urls = urls
        self._scores = RewardScores(session, urls, authorization)

    async def reports(self, candidate: str) -> dict[str, EngineReport]:
        """Each agent's report, by its URL. An agent that does not answer is reported as such."""
        return (await self.reports_of([candidate]))[candidate]

    async def reports_of(self, candidates: Sequence[str]) -> dict[str, dict[str, EngineReport]]:
        """The agents' reports of each candidate; each agent is asked once for all of them."""
        if not candidates:
            return {}
        answers = await asyncio.gather(*(self._adapters(url) for url in self._urls))
        return {
            candidate: {
                url: _report(answer, candidate)
                for url, answer in zip(self._urls, answers, strict=True)
            }
            for candidate in candidates
        }

    async def bases(self) -> set[str]:
        """The base models that the engines serve, by their names there; none of a silent agent."""
        answers = await asyncio.gather(*(self._adapters(url) for url in self._urls))
        engines = (one.get("engine") for one in answers if isinstance(one, dict))
        return {
            base
            for engine in engines
            if isinstance(engine, dict)
            and isinstance(base := engine.get("base_model"), str)
            and base
        }

    async def scores(self, model: str, answers: Sequence[ScoredAnswer]) -> tuple[str, list[float]]:
        """The newest reward model's name, and its score of each answer.

        An empty name where no replica scores them all.
        """
        try:
            found = await self._scores.given(model, answers)
        except NotScored as error:
            log.info(Unavailable.scorer, during="evaluation", model=model, error=str(error))
            return "", []
        return found.reward_model, [score.value for score in found.scores]

    async def _adapters(self, url: str) -> object:
        """What the agent says of its engine and adapters; why there is no answer where there is none."""
        try:
            async with request_within(
                TIMEOUT_S, self._session, "GET", f"{url.rstrip('/')}/v1/adapters"
            ) as response:
                response.raise_for_status()
                return await read_json(response, limit=MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return error


def _report(answer: object, candidate: str) -> EngineReport:
    try:
        if isinstance(answer, Exception):
            raise answer
        return read(answer, candidate)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return EngineReport(ready=None, detail=(str(error) or type(error).__name__)[:MAX_SAID])


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
    state = str(found.get("state", ""))[:MAX_SAID]
    reason = str(found.get("reason") or "")[:MAX_SAID]
    undecided = state == "refused" and found.get("fault") == PEOPLE_DECIDE
    return EngineReport(
        ready=ready,
        generation=generation,
        candidate_ready=ready and state == SERVING,
        refused=(reason or "no reason given") if state == "refused" and not undecided else "",
        undecided=undecided,
        elsewhere=state == ELSEWHERE,
        detail=f"{state}: {reason}".strip(": "),
    )
