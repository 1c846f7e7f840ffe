"""Reward-model client: scores of answers from the inference service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp

from shared.contracts.events.base import Message
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
    """The inference service gave no scores."""

    status = 503
    title = "No scores"


class RewardScores:
    """`POST /v1/score` of the inference service."""

    def __init__(self, session: aiohttp.ClientSession, url: str, authorization: str) -> None:
        self._session = session
        self._url = url.rstrip("/") + "/v1/score"
        self._headers = {"authorization": authorization} if authorization else {}

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
        """The same with the name of the reward model.

        Raises:
            NotScored: there is no reward model, no answer in time, or another one was published
                between two requests.

        """
        found: list[Score] = []
        names: set[str] = set()
        try:
            for first in range(0, len(answers), SCORED_AT_ONCE):
                one = await self._scores(model, answers[first : first + SCORED_AT_ONCE])
                names.add(one.reward_model)
                found += one.scores
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError) as error:
            raise self._not_scored(str(error) or type(error).__name__) from error
        if len(found) != len(answers):
            raise self._not_scored(f"{len(found)} scores for {len(answers)} answers")
        if not all(math.isfinite(figure) for one in found for figure in one):
            raise self._not_scored("a score is no finite number")
        if len(names) > 1:
            raise self._not_scored(f"scores of several reward models, {', '.join(sorted(names))}")
        return GivenScores("".join(names), found)

    def _not_scored(self, why: str) -> NotScored:
        return NotScored(f"{self._url}: {why}; see the log of the inference service, and try again")

    async def _scores(self, model: str, answers: Sequence[ScoredAnswer]) -> GivenScores:
        items = [
            {"messages": [turn.model_dump(include={"role", "content"}) for turn in turns]}
            | {"completion": answer}
            for turns, answer in answers
        ]
        async with request_within(
            TIMEOUT_S,
            self._session,
            "POST",
            self._url,
            json={"model": model, "items": items},
            headers=self._headers,
        ) as response:
            response.raise_for_status()
            body = await read_json(response, limit=MAX_ANSWER_BYTES)
        scores = body["scores"]
        doubts = body.get("uncertainties") or [0.0] * len(scores)
        pairs = zip(scores, doubts, strict=True)
        return GivenScores(
            str(body["reward_model"]), [Score(float(score), float(doubt)) for score, doubt in pairs]
        )
