"""Voting by raters: the next comparison, votes, corrections and their undo."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Literal

from services.feedback.comparisons import Comparisons
from services.feedback.errors import AlreadyVoted, Busy, FeedbackError, NotFound
from services.feedback.metrics import FeedbackMetrics
from services.feedback.open_comparisons import Comparison, OpenComparisons
from services.feedback.pair_choice import PairChoice
from services.feedback.publisher import FeedbackPublisher, feedback_record
from services.feedback.submissions import withdrawn
from services.feedback.voting.corrections import correction, marks
from services.feedback.voting.invites import Rater
from services.feedback.voting.plan import VotingPlan
from services.feedback.voting.prompts import snippet
from services.feedback.voting.rater_store import (
    CountedVote,
    PendingComparison,
    RaterStore,
    day_of,
)
from services.feedback.voting.reading_time import least_reading_time
from services.feedback.voting.reserve import ComparisonReserve
from services.feedback.voting.spans import MarkedSpan
from shared.clock import Clock
from shared.contracts.events.base import Message, prompt_text
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.intake import Withdrawal
from shared.contracts.events.votes import Choice, Side
from shared.information import DRAWN_SHARE
from shared.redaction.detection import Redact, redacted
from shared.registry.routing import RoutingTable

UNDO = timedelta(seconds=60)
"""How long after a vote its rater may take it back."""
MAX_VOTES_A_DAY = 2_000
"""More than that from one person in a day is no reading."""
RESERVE = 1
"""Comparisons kept ready behind the one shown."""
MAX_PENDING = 8
"""Comparisons one rater may have open; beyond it a question of one's own replaces the oldest."""


class UndoOver(FeedbackError):
    """The minute in which a vote can be taken back is over."""

    status = 409
    code = AlreadyVoted.code
    title = "Too late to undo"


@dataclass(frozen=True, slots=True)
class Shown:
    """A comparison as a rater sees it: nothing in it names a version."""

    comparison_id: str
    category: str
    turns: tuple[Message, ...]
    """The conversation, the question last."""
    left: Side
    right: Side
    one_version: bool


@dataclass(frozen=True, slots=True)
class RaterProgress:
    """What a rater did today, and today's votes of all raters by category."""

    today: int
    goal: int
    coverage: dict[str, int]
    votes: list[CountedVote]


class RaterBallots:
    """What a rater may do; every method may raise a FeedbackError."""

    def __init__(
        self,
        *,
        comparisons: Comparisons,
        open_comparisons: OpenComparisons,
        raters: RaterStore,
        publisher: FeedbackPublisher,
        routing: RoutingTable,
        metrics: FeedbackMetrics,
        clock: Clock,
        redact: Redact,
        plan: VotingPlan,
        authorization: str = "",
        pairs: PairChoice | None = None,
        drawn_share: float = DRAWN_SHARE,
        rng: random.Random | None = None,
    ) -> None:
        self._comparisons = comparisons
        self._open = open_comparisons
        self._raters = raters
        self._publisher = publisher
        self._metrics = metrics
        self._clock = clock
        self._redact = redact
        self.plan = plan
        self.reserve = ComparisonReserve(
            comparisons=comparisons,
            open_comparisons=open_comparisons,
            raters=raters,
            routing=routing,
            clock=clock,
            plan=plan,
            authorization=authorization,
            pairs=pairs,
            drawn_share=drawn_share,
            rng=rng,
        )
        self._asking: set[Rater] = set()

    async def next(self, rater: Rater) -> Shown:
        """The comparison shown last that has no vote yet, else the one in reserve, else a new one.

        One more is then generated in reserve.
        """
        found = await self._first(rater)
        if found is None:
            await asyncio.shield(self.reserve.prepare(rater))
            found = await self._first(rater)
            if found is None:
                raise NotFound("the comparison was lost before it was shown; try again")
        pending, comparison = found
        shown = await self._show(rater, pending, comparison)
        if self.reserve.queue and len(await self._raters.pending(rater)) <= RESERVE:
            self.reserve.prepare(rater)
        return shown

    async def ask(self, rater: Rater, question: str, category: str = "") -> Shown:
        """A comparison on the rater's own question."""
        if rater in self._asking:
            raise Busy("your last question is being answered; wait for it", retry_after_s=2)
        self._asking.add(rater)
        try:
            turns = (Message(role="user", content=question),)
            pending = await self.reserve.open(
                rater, turns, self.plan.category_of(question, category)
            )
        finally:
            self._asking.discard(rater)
        comparison = await self._of(rater, pending.comparison_id)
        shown = await self._show(rater, pending, comparison)
        before = [one for one in await self._raters.pending(rater) if one.shown_at is not None]
        for old in before[MAX_PENDING:]:
            await self._raters.drop(rater, old.comparison_id)
        return shown

    async def vote(self, rater: Rater, comparison_id: str, choice: Choice) -> CountedVote:
        """Count the rater's vote and reveal the versions. A repeat of it counts once."""
        comparison = await self._of(rater, comparison_id)
        now = self._clock.now()
        if len(await self._raters.votes(rater, day_of(now))) >= MAX_VOTES_A_DAY:
            raise Busy(f"{MAX_VOTES_A_DAY} votes a day are counted; go on tomorrow")
        pending = await self._raters.pending(rater)
        shown_at = next(
            (one.shown_at for one in pending if one.comparison_id == comparison_id), None
        )
        hasty = shown_at is not None and now - shown_at < least_reading_time(
            comparison.left.completion, comparison.right.completion
        )
        labels = {"vote_side": choice.value, "vote_source": "page"}
        if shown_at is not None:
            labels["vote_ms"] = str(round((now - shown_at) / timedelta(milliseconds=1)))
        if hasty:
            labels["vote_faster_than_reading"] = "true"
        try:
            await self._comparisons.vote(
                comparison_id,
                {"choice": choice.value, "user_id": rater.user_id},
                tenant=rater.tenant,
                labels=labels,
            )
        except AlreadyVoted:
            await self._raters.drop(rater, comparison_id)
            raise
        vote = CountedVote(
            comparison_id=comparison_id,
            category=comparison.context.category,
            question=snippet(prompt_text(comparison.messages)),
            choice=choice,
            left=comparison.left.version,
            right=comparison.right.version,
            at=now,
            faster_than_reading=hasty,
        )
        await self._raters.count(rater, vote)
        await self._raters.drop(rater, comparison_id)
        return vote

    async def undo(self, rater: Rater, comparison_id: str) -> CountedVote:
        """Withdraw a vote within a minute. The comparison stays closed: its versions are known."""
        vote = await self._counted(rater, comparison_id)
        if vote is None:
            raise NotFound("you have no such vote today; the history shows those that you have")
        now = self._clock.now()
        if not vote.withdrawn:
            if now >= vote.at + UNDO:
                raise UndoOver(
                    "a vote can be taken back for a minute, and this one stands; go on with the next one"
                )
            withdrawal = Withdrawal(
                feedback_id=comparison_id,
                trace_id=comparison_id,
                type=FeedbackType.preference,
                revision=1,
                user_id=rater.user_id,
            )
            event = withdrawn(withdrawal, tenant=rater.tenant, at=now)
            await self._publisher.store(feedback_record(event))
            self._metrics.accepted(event, "withdrawal")
            await self._raters.withdraw(rater, vote)
        return vote.model_copy(update={"withdrawn": True})

    async def correct(
        self, rater: Rater, comparison_id: str, side: Literal["left", "right"], corrected: str
    ) -> None:
        """Store the rater's correction of one answer, once the vote is in; the last one counts."""
        answer, category = await self._voted_answer(rater, comparison_id, side)
        build = partial(
            correction,
            answer,
            corrected,
            rater,
            category=category,
            source="page",
            at=self._clock.now(),
        )
        event = await redacted(self._redact, lambda redact: build(redact=redact))
        await self._publisher.store(feedback_record(event))
        self._metrics.accepted(event, "single")

    async def mark(
        self,
        rater: Rater,
        comparison_id: str,
        side: Literal["left", "right"],
        spans: Sequence[MarkedSpan],
    ) -> None:
        """Store which parts of one answer the rater liked and disliked, once the vote is in."""
        answer, category = await self._voted_answer(rater, comparison_id, side)
        build = partial(
            marks,
            answer,
            spans,
            rater,
            feedback_id=f"{comparison_id}:{side}",
            category=category,
            at=self._clock.now(),
        )
        events = await redacted(self._redact, lambda redact: build(redact=redact))
        refused = await self._publisher.store_batch([feedback_record(event) for event in events])
        for error in refused.values():
            raise error
        for event in events:
            self._metrics.accepted(event, "single")

    async def progress(self, rater: Rater) -> RaterProgress:
        """Today's votes: the rater's own, and everybody's by category."""
        today = day_of(self._clock.now())
        votes = await self._raters.votes(rater, today)
        counts = await self._raters.coverage(rater.tenant, today)
        return RaterProgress(
            today=sum(not vote.withdrawn for vote in votes),
            goal=self.plan.goal,
            coverage={name: max(counts.get(name, 0), 0) for name in self.plan.category_names},
            votes=votes,
        )

    def undo_left_s(self, vote: CountedVote) -> float:
        """Seconds in which a vote can still be taken back."""
        if vote.withdrawn:
            return 0.0
        return max((vote.at + UNDO - self._clock.now()).total_seconds(), 0.0)

    async def _first(self, rater: Rater) -> tuple[PendingComparison, Comparison] | None:
        """The rater's first open comparison that the store still has."""
        for pending in await self._raters.pending(rater):
            comparison = await self._open.get(rater.tenant, pending.comparison_id)
            if comparison is not None:
                return pending, comparison
            await self._raters.drop(rater, pending.comparison_id)
        return None

    async def _show(
        self, rater: Rater, pending: PendingComparison, comparison: Comparison
    ) -> Shown:
        await self._raters.show(rater, pending.comparison_id, self._clock.now())
        return Shown(
            comparison_id=pending.comparison_id,
            category=pending.category,
            turns=comparison.messages,
            left=comparison.left,
            right=comparison.right,
            one_version=comparison.left.version == comparison.right.version,
        )

    async def _of(self, rater: Rater, comparison_id: str) -> Comparison:
        """The rater's own comparison."""
        comparison = await self._open.get(rater.tenant, comparison_id)
        if comparison is None or comparison.user_id != rater.user_id:
            raise NotFound("no such comparison, or its hour is over; take the next one")
        return comparison

    async def _voted_answer(
        self, rater: Rater, comparison_id: str, side: Literal["left", "right"]
    ) -> tuple[Side, str]:
        """One answer of a comparison that has the rater's vote, and its category."""
        comparison = await self._of(rater, comparison_id)
        if await self._counted(rater, comparison_id) is None:
            raise NotFound("vote first; corrections and marks may follow")
        answer = comparison.left if side == "left" else comparison.right
        return answer, comparison.context.category

    async def _counted(self, rater: Rater, comparison_id: str) -> CountedVote | None:
        """The rater's vote on a comparison, of today or, just after midnight, of yesterday."""
        today = day_of(self._clock.now())
        for day in (today, today - timedelta(days=1)):
            for vote in await self._raters.votes(rater, day):
                if vote.comparison_id == comparison_id:
                    return vote
        return None
