"""Active learning on a schedule: the queue's prompts ranked by what a vote on them would tell.

Two versions answer a bounded sample of the queue, the reward model scores the answers, and the
page asks first where it is unsure and the answers differ (`shared.information`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.feedback.errors import FeedbackError
from services.feedback.router_client import Question, RouterClient, VersionUnavailable
from services.feedback.voting.plan import QueuedPrompt, VotingPlan
from services.feedback.voting.prompts import PromptQueue
from shared.backoff import Backoff
from shared.clock import Clock
from shared.contracts.events.base import prompt_text
from shared.errors import RatchetError
from shared.http.reward_scores import NotScored, RewardScores
from shared.information import AnsweredTwice, diversified

log = structlog.get_logger(__name__)

AT_ONCE = 4
"""Prompts being answered at one time."""
RETRY_S = 60.0
"""First wait after a ranking that was not possible: nothing is served, or there are no scores."""


@dataclass(frozen=True)
class RankingSchedule:
    """How often the queue is ranked, and how many of its prompts are answered each time."""

    every_s: float
    prompts: int


class PromptRanking:
    """Ranks a queue as long as the service runs."""

    def __init__(
        self,
        *,
        router: RouterClient,
        scores: RewardScores,
        queue: PromptQueue,
        plan: VotingPlan,
        compared: Callable[[], tuple[str, tuple[str, str]]],
        schedule: RankingSchedule,
        clock: Clock,
        authorization: str = "",
        rng: random.Random | None = None,
    ) -> None:
        """`compared` names the model and the two versions that the page shows."""
        self._router = router
        self._scores = scores
        self._queue = queue
        self._plan = plan
        self._compared = compared
        self._schedule = schedule
        self._clock = clock
        self._authorization = authorization
        self._rng = rng or random.SystemRandom()

    async def run(self) -> None:
        """Rank until cancelled; what is not possible now is tried again in a minute, then less often."""
        every_s = self._schedule.every_s
        backoff = Backoff(min(RETRY_S, every_s), every_s)
        while True:
            try:
                log.info("voting.ranked", prompts=await self.rank())
            except RatchetError as error:
                wait_s = backoff.next_s()
                log.info("voting.not_ranked", error=str(error), retry_in_s=wait_s)
            else:
                wait_s = every_s
                backoff.reset()
            await self._clock.sleep(wait_s)

    async def rank(self) -> int:
        """Rank once; returns how many prompts were answered by both versions.

        Raises:
            FeedbackError: no version is served.
            NotScored: none answers, or nothing scores the answers.

        """
        model, versions = self._compared()
        first = self._plan.prompts[0]
        # Without a reward model hundreds of answers would be generated for nothing.
        await self._scores.of(model, [(first.turns, first.text)])
        asked = self._rng.sample(
            self._plan.prompts, min(self._schedule.prompts, len(self._plan.prompts))
        )
        gate = asyncio.Semaphore(AT_ONCE)
        both = await asyncio.gather(*(self._answers(one, versions, gate) for one in asked))
        answered = [(one, texts) for one, texts in zip(asked, both, strict=True) if texts]
        if not answered:
            raise NotScored("no prompt was answered by both versions; see the log for why")
        found = await self._scores.with_uncertainty(
            model, [(one.turns, text) for one, texts in answered for text in texts]
        )
        twice = [
            AnsweredTwice(prompt_text(one.turns), texts, (found[at * 2], found[at * 2 + 1]))
            for at, (one, texts) in enumerate(answered)
        ]
        gains = await asyncio.to_thread(diversified, twice)
        self._queue.inform(versions, dict(gains))
        return len(answered)

    async def _answers(
        self, prompt: QueuedPrompt, versions: tuple[str, str], gate: asyncio.Semaphore
    ) -> tuple[str, str] | None:
        """Both versions' answers; None where one has none: a failure stops no other prompt."""
        question = Question(prompt.turns, self._plan.max_tokens, None, "", {})
        async with gate:
            try:
                one, other = [
                    await self._router.answer(
                        question, version, seed, authorization=self._authorization
                    )
                    for seed, version in enumerate(versions)
                ]
            except (FeedbackError, VersionUnavailable) as error:
                log.info("voting.prompt_not_answered", error=str(error))
                return None
        return one.text, other.text
