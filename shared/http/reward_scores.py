"""Reward-model client: scores of answers from whichever inference service has the reward model.

Services need not have the same: while a newer base is rolled out, one has the base of the newest reward
model and another has not. The one that gave scores last is asked first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import aiohttp

from shared.contracts.events.base import Message
from shared.credentials import CredentialsUnreadable
from shared.errors import RatchetError
from shared.http.answers import read_json
from shared.http.client import request_within
from shared.information import Score

TIMEOUT_S = 180.0
"""The first request loads the reward model."""
SCORED_AT_ONCE = 64
MAX_ANSWER_BYTES = 1024 * 1024

ScoredAnswer = tuple[Sequence[Message], str]
"""A conversation and an answer to it."""


class GivenScores(NamedTuple):
    """A score for each answer, in order, all by one reward model."""

    reward_model: str
    scores: list[Score]


class NotScored(RatchetError):
    """No inference service gave scores."""

    status = 503
    title = "No scores"


class RewardScores:
    """`POST /v1/score` of the inference services."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        authorization: Callable[[], str] = str,
    ) -> None:
        """`authorization` gives the header as the key's file has it now; empty without a key."""
        self._session = session
        self._urls = [url.rstrip("/") + "/v1/score" for url in urls]
        self._authorization = authorization

    async def of(self, model: str, answers: Sequence[ScoredAnswer]) -> list[float]:
        """A score for each answer, in order; only differences mean something.

        Raises:
            NotScored: there is no reward model, or no answer in time.

        """
        return [score.value for score in await self.with_uncertainty(model, answers)]

    async def with_uncertainty(self, model: str, answers: Sequence[ScoredAnswer]) -> list[Score]:
        """The same with how far the reward model's heads are apart.

        Raises:
            NotScored: there is no reward model, or no answer in time.

        """
        return (await self.given(model, answers)).scores

    async def given(self, model: str, answers: Sequence[ScoredAnswer]) -> GivenScores:
        """The same with the name of the reward model, all from one service; a further one is asked
        where one gives none.

        Raises:
            NotScored: no service has a reward model or answers in time, or another one was published
                between two requests.

        """
        faults: list[NotScored] = []
        for url in tuple(self._urls):
            try:
                found = await self._given(url, model, answers)
            except NotScored as error:
                faults.append(error)
                continue
            self._urls.remove(url)
            self._urls.insert(0, url)
            return found
        raise NotScored("; ".join(map(str, faults)) or "no inference service is named")

    async def _given(self, url: str, model: str, answers: Sequence[ScoredAnswer]) -> GivenScores:
        found: list[Score] = []
        names: set[str] = set()
        try:
            for first in range(0, len(answers), SCORED_AT_ONCE):
                one = await self._scores(url, model, answers[first : first + SCORED_AT_ONCE])
                names.add(one.reward_model)
                found += one.scores
        except (
            aiohttp.ClientError,
            CredentialsUnreadable,
            TimeoutError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            raise _not_scored(url, str(error) or type(error).__name__) from error
        if len(found) != len(answers):
            raise _not_scored(url, f"{len(found)} scores for {len(answers)} answers")
        if not all(math.isfinite(figure) for one in found for figure in one):
            raise _not_scored(url, "a score is no finite number")
        if len(names) > 1:
            several = ", ".join(sorted(names))
            raise _not_scored(url, f"scores of several reward models, {several}")
        return GivenScores("".join(names), found)

    async def _scores(self, url: str, model: str, answers: Sequence[ScoredAnswer]) -> GivenScores:
        items = [
            {"messages": [turn.model_dump(include={"role", "content"}) for turn in turns]}
            | {"completion": answer}
            for turns, answer in answers
        ]
        key = self._authorization()
        async with request_within(
            TIMEOUT_S,
            self._session,
            "POST",
            url,
            json={"model": model, "items": items},
            headers={"authorization": key} if key else {},
        ) as response:
            response.raise_for_status()
            body = await read_json(response, limit=MAX_ANSWER_BYTES)
        scores = body["scores"]
        doubts = body.get("uncertainties") or [0.0] * len(scores)
        pairs = zip(scores, doubts, strict=True)
        return GivenScores(
            str(body["reward_model"]), [Score(float(score), float(doubt)) for score, doubt in pairs]
        )


def _not_scored(url: str, why: str) -> NotScored:
    return NotScored(f"{url}: {why}; see the log of the inference service, and try again")
