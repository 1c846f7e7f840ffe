"""Looks at fresh votes: their texts are read from the log and scored by the served reward model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

from services.training.metrics import TrainingMetrics
from services.training.reward_freshness import (
    FreshAgreement,
    FreshVerdicts,
    KnownVerdicts,
    VotePlace,
    is_scorable,
)
from services.training.snapshot import MODELS, place
from shared.clock import Clock
from shared.contracts.events.preferences import PreferencePair
from shared.contracts.events.versions import RewardRecord
from shared.contracts.topics import PREFERENCES
from shared.http.reward_scores import NotScored, RewardScores
from shared.kafka.envelope import UnreadableRecord, decode
from shared.kafka.log import EventLog, LogUnavailable, Record, records_to_end
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 600.0
LOOK_TIMEOUT_S = 300.0
"""For all scores of one look; what is open then is asked for at the next."""
READ_TIMEOUT_S = 60.0
FAILURES_IN_A_ROW = 5
"""Votes that the scorer does not score, one after the other, after which a look ends."""


Stands = Callable[[str, VotePlace], Awaitable[bool]]
"""Whether the pair of this id is still the one at this place."""


class FreshScorer:
    """Has fresh votes scored, a bounded number per look, and tells how many the reward model agrees with."""

    def __init__(
        self,
        event_log: EventLog,
        scores: RewardScores,
        metrics: TrainingMetrics,
        clock: Clock,
        min_votes: int,
        before: KnownVerdicts = KnownVerdicts(),  # noqa: B008
    ) -> None:
        """Take the log, the scorer, and what an earlier process knew of the votes.

        `min_votes`: below so many fresh votes none is scored, as nothing could be concluded.
        """
        self._log = event_log
        self._scores = scores
        self._metrics = metrics
        self._clock = clock
        self._min_votes = min_votes
        self._verdicts = FreshVerdicts(before)
        self._stands: Stands | None = None
        self._published: RewardRecord | None = None
        self._noted = asyncio.Event()
        self._looked_at = -math.inf

    @property
    def agreement(self) -> FreshAgreement:
        """Of the newest looks."""
        return self._verdicts.agreement

    @property
    def known(self) -> KnownVerdicts:
        """What is to be kept over a restart."""
        return self._verdicts.known

    @property
    def is_looking(self) -> bool:
        """Whether a look is under way."""
        return self._noted.is_set()

    def is_due(self, published: RewardRecord) -> bool:
        """Whether it is time for a look at this, the newest reward model, and none is under way."""
        rested = self._clock.monotonic() - self._looked_at >= LOOK_EVERY_S
        another = self._published is None or self._published.name != published.name
        return (rested or another) and not self.is_looking

    def forget(self) -> None:
        """Know of no vote any more: their topic is gone."""
        self._verdicts.forget()

    def note(self, published: RewardRecord, votes: list[VotePlace], stands: Stands) -> None:
        """Take in the newest reward model and its fresh votes, newest first; `run` looks at them.

        `stands` is asked before a vote's texts are sent: it may be erased while others are scored.
        """
        self._stands = stands
        self._looked_at = self._clock.monotonic()
        self._published = published
        self._verdicts.renew(published.name, votes)
        self._show(published)
        if len(votes) >= self._min_votes:
            self._noted.set()

    async def run(self) -> None:
        """Look whenever votes were noted, until cancelled. What fails is tried at the next look."""
        while True:
            await self._noted.wait()
            published = self._published
            assert published is not None
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    await self._look(published)
            except (NotScored, TimeoutError) as error:
                why = str(error) or f"not within {LOOK_TIMEOUT_S:g} s"
                log.warning(Unavailable.scorer, during="fresh_votes", error=why)
            except LogUnavailable as error:
                log.warning(Unavailable.kafka, during="fresh_votes", error=str(error))
            finally:
                self._noted.clear()
            self._show(published)

    async def _look(self, published: RewardRecord) -> None:
        due = self._verdicts.due()
        pairs = await self._read(due)
        self._count_failed([vote for vote in due if vote not in pairs])
        in_a_row, failed = 0, list[NotScored]()
        for vote, pair in pairs.items():
            if self._stands is not None and not await self._stands(pair.pair_id, vote):
                continue
            try:
                agreed = await self._agrees(published, pair)
            except asyncio.CancelledError:
                self._count_failed([vote])  # the look's time is over
                raise
            except NotScored as error:
                self._count_failed([vote])
                failed.append(error)
                in_a_row += 1
                if in_a_row >= FAILURES_IN_A_ROW:
                    raise
            else:
                self._verdicts.put(vote, agreed=agreed)
                self._metrics.fresh_votes.labels("scored").inc()
                in_a_row = 0
        if failed:
            log.info("fresh_votes.not_scored", votes=len(failed), last=str(failed[-1]))

    async def _agrees(self, published: RewardRecord, pair: PreferencePair) -> bool:
        found = await self._scores.given(
            pair.model, [(pair.messages, pair.chosen), (pair.messages, pair.rejected)]
        )
        if found.reward_model != published.name:
            raise NotScored(
                f"scores are of {found.reward_model!r}, not of {published.name}; wait until the "
                "inference service has read of it"
            )
        chosen, rejected = found.scores
        return chosen.value > rejected.value

    async def _read(self, votes: list[VotePlace]) -> dict[VotePlace, PreferencePair]:
        """The pairs of these places that can be scored, in this order."""
        begins: dict[tuple[str, int], int] = {}
        for where, offset in votes:
            topic, _, partition = where.rpartition("/")
            begin = (topic, int(partition))
            begins[begin] = min(offset, begins.get(begin, offset))
        wanted = frozenset(votes)

        def is_wanted(record: Record) -> bool:
            return (place(record), record.offset) in wanted

        found: dict[VotePlace, PreferencePair] = {}
        if not wanted:
            return found
        records = records_to_end(
            self._log,
            PREFERENCES,
            timeout_s=READ_TIMEOUT_S,
            keep=is_wanted,
            since="latest",
            positions=begins,
        )
        async for record in records:
            try:
                event = decode(record.headers, record.value, MODELS)
            except UnreadableRecord:
                continue
            if isinstance(event, PreferencePair) and is_scorable(event):
                found[place(record), record.offset] = event
        return {vote: found[vote] for vote in votes if vote in found}

    def _count_failed(self, votes: list[VotePlace]) -> None:
        self._verdicts.failed(votes)
        self._metrics.fresh_votes.labels("failed").inc(len(votes))

    def _show(self, published: RewardRecord) -> None:
        agreement = self.agreement
        change = agreement.change(published)
        enough = agreement.votes >= self._min_votes and agreement.reward_model == published.name
        figures = {
            "fresh_accuracy": agreement.accuracy if enough else None,
            "fresh_accuracy_change_high": change[1] if enough and change else None,
        }
        self._metrics.show_reward_figures(published.model, figures)
