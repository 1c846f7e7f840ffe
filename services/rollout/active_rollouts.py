"""Working state of the unfinished rollouts: evidence and judge, kept by the leader alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.rollout import engine_loss
from services.rollout.counts import JudgeState
from services.rollout.criteria import STATISTIC
from services.rollout.decision_log import RolloutHistory
from services.rollout.evidence import (
    RolloutEvidence,
    SampleWindow,
    recorded_statistic,
    recovered,
    take,
)
from services.rollout.evidence_store import EvidenceStore
from services.rollout.judge import Judge
from services.rollout.metrics import RolloutMetrics
from services.rollout.observer import RawObservation
from services.rollout.state import RolloutState
from services.rollout.verdict import Verdict
from shared.clock import Clock


@dataclass(slots=True)
class ActiveRollout:
    """The leader's working state of an unfinished rollout."""

    state: RolloutState
    evidence: RolloutEvidence
    judge: Judge
    last_decision_at: float = float("-inf")
    last_full_evidence_at: float = float("-inf")
    holds_since: int = 0
    """Written since the last decision that carried the evidence whole."""

    @classmethod
    def begun(cls, state: RolloutState) -> ActiveRollout:
        """A rollout that begins, without evidence."""
        evidence = RolloutEvidence(rollout_id=state.rollout_id, statistic=STATISTIC)
        return cls(state, evidence, _judge(state, STATISTIC))


class ActiveRollouts:
    """The unfinished rollouts by id. An ended one is known only by its series, for a grace time."""

    def __init__(
        self, store: EvidenceStore, metrics: RolloutMetrics, clock: Clock, series_grace_s: float
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._series_grace_s = series_grace_s
        self._active: dict[str, ActiveRollout] = {}
        self._ended: dict[tuple[str, str], float] = {}

    def get(self, rollout_id: str) -> ActiveRollout | None:
        """A rollout that was taken up; None for any other."""
        return self._active.get(rollout_id)

    async def take_up(self, history: RolloutHistory) -> ActiveRollout:
        """A rollout from the log: the newer of its file and its last decision counts."""
        rollout_id, decided = history.state.rollout_id, history.evidence()
        known = self._active.get(rollout_id)
        if known is not None:
            return known
        judge = _judge(history.state, recorded_statistic(decided))
        from_log = recovered(rollout_id, decided, judge)
        evidence = await asyncio.to_thread(self._store.load, rollout_id)
        if evidence is None or evidence.sampled_until < from_log.sampled_until:
            evidence = from_log
        active = ActiveRollout(history.state, evidence, judge)
        self._active[rollout_id] = active
        return active

    async def judge(self, active: ActiveRollout, raw: RawObservation) -> SampleWindow:
        """Take the observed samples into a rollout's evidence; returns the window of time judged."""
        window = engine_loss.judged_window(
            active.evidence, raw.series, active.state, raw.agents, self._clock.now()
        )
        evidence = take(active.evidence, raw.series, active.state, active.judge, window)
        if evidence is not active.evidence:
            active.evidence = evidence
            if not await asyncio.to_thread(self._store.save, evidence):
                self._metrics.evidence_refused.inc()
        return window

    def recorded(self, active: ActiveRollout) -> None:
        """A decision of this rollout was written; one that has ended is looked at no more."""
        state = active.state
        self._active[state.rollout_id] = active
        if state.phase.finished:
            del self._active[state.rollout_id]
            self._ended[state.model, state.rollout_id] = self._clock.monotonic()

    def newest(
        self, history: RolloutHistory
    ) -> tuple[RolloutState, JudgeState | None, Verdict | None]:
        """A rollout's state and evidence as the leader has them; as the log has them elsewhere."""
        active = self._active.get(history.state.rollout_id)
        if active is None:
            return history.state, None, None
        judged = active.evidence.judge
        verdict = active.judge.verdict(judged, error_limit=active.state.error_limit)
        return active.state, judged, verdict

    def forget_series(self) -> None:
        """Drop the series of rollouts that ended longer ago than the grace time."""
        now = self._clock.monotonic()
        for (model, rollout), ended in list(self._ended.items()):
            if now - ended > self._series_grace_s:
                self._metrics.forget(model, rollout)
                del self._ended[model, rollout]

    def follow(self) -> None:
        """Know no more than the log: another replica leads."""
        self._active.clear()
        self._ended.clear()

    async def lead(self, unfinished: Sequence[RolloutHistory]) -> None:
        """Begin to lead these rollouts: what was known from an earlier lead is out of date."""
        self._active.clear()
        await asyncio.to_thread(self._store.tidy, {one.state.rollout_id for one in unfinished})


def _judge(state: RolloutState, statistic: int) -> Judge:
    return Judge(state.strategy.judge, state.strategy.error_limits, statistic)
