"""Reserve of comparisons: opened for a rater of a queued prompt, ahead of time, or of a question."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import structlog

from services.feedback.comparisons import Comparisons
from services.feedback.errors import NotFound
from services.feedback.matchups import informative_pair
from services.feedback.open_comparisons import OpenComparisons
from services.feedback.pair_choice import PairChoice
from services.feedback.voting.invites import Rater
from services.feedback.voting.plan import VotingPlan
from services.feedback.voting.prompts import PromptQueue, snippet
from services.feedback.voting.rater_store import PendingComparison, RaterStore, day_of
from shared.clock import Clock
from shared.contracts.events.base import Message, prompt_text
from shared.information import DRAWN_SHARE
from shared.registry.routing import RoutingTable

log = structlog.get_logger(__name__)


class NothingToVoteOn(NotFound):
    """The queue has no prompt, or no version is served that could answer one."""

    title = "Nothing to vote on"


class ComparisonReserve:
    """Opens comparisons for raters; every method may raise a FeedbackError."""

    def __init__(
        self,
        *,
        comparisons: Comparisons,
        open_comparisons: OpenComparisons,
        raters: RaterStore,
        routing: RoutingTable,
        clock: Clock,
        plan: VotingPlan,
        authorization: str,
        pairs: PairChoice | None = None,
        drawn_share: float = DRAWN_SHARE,
        rng: random.Random | None = None,
    ) -> None:
        """`pairs` chooses of several answers; `drawn_share` of the comparisons are on any prompt and
        any two answers, so that none waits for ever, and versions are still compared fairly.
        """
        self._comparisons = comparisons
        self._open = open_comparisons
        self._raters = raters
        self._routing = routing
        self._clock = clock
        self._plan = plan
        self.queue = PromptQueue(plan)
        self._authorization = authorization
        self._pairs = pairs
        self._drawn_share = drawn_share
        self._rng = rng or random.SystemRandom()
        self._preparing: dict[Rater, asyncio.Task[None]] = {}

    def compared(self) -> tuple[str, tuple[str, str]]:
        """The model and two versions that the page shows; of more than two named the first two.

        Raises:
            NothingToVoteOn: no version is served yet.

        """
        model = voted_model(self._plan, self._routing)
        if self._plan.versions:
            return model, (self._plan.versions[0], self._plan.versions[1])
        return model, self._comparisons.opponents(model)

    def prepare(self, rater: Rater) -> asyncio.Task[None]:
        """The one running generation of a queued prompt for this rater, started where none runs."""
        task = self._preparing.get(rater)
        if task is None:
            task = asyncio.create_task(self._take_from_queue(rater))
            self._preparing[rater] = task
            task.add_done_callback(lambda done: self._prepared(rater, done))
        return task

    async def open(
        self,
        rater: Rater,
        turns: Sequence[Message],
        category: str,
        pairs: PairChoice | None = None,
    ) -> PendingComparison:
        """Open a comparison of a conversation for a rater, of any two answers without `pairs`."""
        versions = await self._pair(rater.tenant)
        opened = await self._comparisons.open(
            {
                **({"versions": versions} if versions else {}),
                "model": voted_model(self._plan, self._routing),
                "messages": [turn.model_dump() for turn in turns],
                "user_id": rater.user_id,
                "metadata": {"category": category},
                "max_tokens": self._plan.max_tokens,
            },
            tenant=rater.tenant,
            authorization=self._authorization,
            pairs=pairs,
        )
        pending = PendingComparison(
            comparison_id=opened["comparison_id"], category=category, opened_at=self._clock.now()
        )
        await self._raters.add(rater, pending)
        return pending

    async def close(self) -> None:
        """Cancel what is being generated in reserve."""
        tasks = list(self._preparing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _prepared(self, rater: Rater, task: asyncio.Task[None]) -> None:
        del self._preparing[rater]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("voting.not_prepared", error=str(error))

    async def _take_from_queue(self, rater: Rater) -> None:
        today = day_of(self._clock.now())
        coverage = await self._raters.coverage(rater.tenant, today)
        seen = {vote.question for vote in await self._raters.votes(rater, today)}
        for pending in await self._raters.pending(rater):
            comparison = await self._open.get(rater.tenant, pending.comparison_id)
            if comparison is not None:
                seen.add(snippet(prompt_text(comparison.messages)))
        ranked = self._rng.random() >= self._drawn_share
        chosen = self.queue.choose(coverage, seen, self._rng, ranked=ranked)
        if chosen is None:
            raise NothingToVoteOn("the queue has no prompts; ask a question of your own")
        prompt, category = chosen
        await self.open(rater, prompt.turns, category, self._pairs if ranked else None)

    async def _pair(self, tenant: str) -> tuple[str, str] | None:
        """Of the plan's versions the two to show; None where it names none."""
        if not self._plan.versions:
            return None
        return informative_pair(self._plan.versions, await self._raters.wins(tenant), self._rng)


def voted_model(plan: VotingPlan, routing: RoutingTable) -> str:
    """The model whose answers are shown: the plan's, else the first that has a stable version.

    Raises:
        NothingToVoteOn: there is none.

    """
    models = [state.model for state in routing.models()]
    if plan.model in models:
        return plan.model
    if plan.model or not models:
        raise NothingToVoteOn(
            f"no version of {plan.model or 'any model'} is served yet; "
            "ratchet versions list shows what there is"
        )
    return models[0]
