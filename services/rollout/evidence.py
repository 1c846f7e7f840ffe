"""Evidence of one rollout: raw counter samples -> what is new -> a slice for the judge. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.rollout.counters import (
    BREAKER,
    BY_PARTITION,
    CAPPED,
    COUNTED,
    CRASH,
    EDGES,
    FIGURES,
    KEYS,
    METRICS,
    REQUESTS,
    CounterSeries,
    Cursor,
    arm_of,
    belongs,
    merged,
    never_falls,
    quoted,
    rises,
    series_key,
    voter_figure,
)
from services.rollout.counts import ArmCounts, Arms, JudgeState, Slice
from services.rollout.criteria import STATISTIC
from services.rollout.judge import Judge
from services.rollout.state import RolloutState
from shared.contracts.events.base import WEIGHT_SCALE

WINDOW_LEAST_S = 15.0
WINDOW_MOST_S = 120.0
"""How far back a fetch asks: what is new, and what may have come late."""
SETTLE_S = 10.0
"""Seconds after a change of weight whose keys are not tested: some fell under the old one."""
MAX_UNREPORTED = 64
"""Slices kept until the next decision carries them; an outage of Kafka for longer loses the
oldest to the replay, never to the judge."""
PARTS_S = 12.0
"""Seconds of samples whose parts by segment and voter one slice carries: most of its bytes. Less
than the 15 s after which Prometheus scrapes unless it is told otherwise."""
MAX_SERIES = 50_000
ArmSums = dict[tuple[str, str], float]
"""What each figure of an arm rose by, by arm and figure."""


@dataclass(frozen=True, slots=True)
class SampleWindow:
    """The part of a fetch that is evidence, in unix seconds.

    Samples up to `after` only move the cursors: what rose until then is never judged. Samples from
    `before` on are left where they are, for a later look.
    """

    after: float = -inf
    before: float = inf


class PendingParts(BaseModel):
    """Parts of the newest slices by segment and voter, for a slice to come to carry."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    since: float = Field(default=0.0, description="unix time up to which slices carried theirs")
    segments: dict[str, Arms] = Field(default_factory=dict)
    voters: dict[str, Arms] = Field(default_factory=dict)

    def plus(self, segments: dict[str, Arms], voters: dict[str, Arms]) -> PendingParts:
        """With what a look brings."""
        return PendingParts(
            since=self.since,
            segments=_together(self.segments, segments),
            voters=_together(self.voters, voters),
        )


class RolloutEvidence(BaseModel):
    """All evidence of one rollout; kept in a file and, but for the cursors, in its decisions."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    rollout_id: str
    statistic: int = Field(
        default=1, description="version of the judge's rule; evidence without one is of the first"
    )
    judge: JudgeState = JudgeState()
    cursors: dict[str, Cursor] = Field(default_factory=dict)
    sampled_until: float = Field(default=0.0, description="unix time of the newest sample counted")
    candidate_at: float = Field(
        default=0.0, description="unix time of the newest sample that counted one of its requests"
    )
    key_resets: int = 0
    recovered_at: float | None = Field(
        default=None, description="the cursors were lost; samples up to here are counted"
    )
    pending: PendingParts = PendingParts()
    unreported: tuple[dict[str, Any], ...] = ()

    def reported(self) -> RolloutEvidence:
        """The same after a decision carried its slices."""
        return self.model_copy(update={"unreported": ()})


def query(rollout_id: str, window_s: float) -> str:
    """PromQL for all series of a rollout: raw samples, one consistent read, no rate()."""
    return (
        f'{{__name__=~"{"|".join((*METRICS, BREAKER))}",rollout="{quoted(rollout_id)}",'
        f'arm=~"stable|candidate|{CAPPED}|",le=~"{"|".join(EDGES)}|",outcome=~"server_error|timeout|crash|"}}'
        f"[{round(window_s)}s]"
    )


def window_s(evidence: RolloutEvidence, now: float) -> float:
    """How far back to ask, in seconds."""
    if evidence.sampled_until == 0.0:
        return WINDOW_MOST_S
    return min(max(now - evidence.sampled_until + WINDOW_LEAST_S, WINDOW_LEAST_S), WINDOW_MOST_S)


def crashes(
    evidence: RolloutEvidence, series: Iterable[CounterSeries], state: RolloutState
) -> Iterator[float]:
    """Unix times of the samples, not counted yet, at which crashes of either arm rose."""
    from_zero = evidence.recovered_at is None
    for one in merged(series):
        if one.name == REQUESTS and one.labels.get("outcome") == CRASH and belongs(one, state):
            cursor, constant = evidence.cursors.get(series_key(one)), never_falls(one)
            for new, rise, _ in rises(
                cursor, one.samples, from_zero=from_zero, never_falls=constant
            ):
                if rise > 0:
                    yield new.at


def take(
    evidence: RolloutEvidence,
    series: Iterable[CounterSeries],
    state: RolloutState,
    judge: Judge,
    window: SampleWindow = SampleWindow(),
) -> RolloutEvidence:
    """Evidence after a fetch. The same object where no sample is new.

    Only series of this rollout's two versions count: a candidate is judged on nothing else.

    A cursor moves over every sample, a rise counts only after `window.after`: moving it without
    counting is how excluded samples are dropped for good, and not counted with the next fetch.
    Samples from `window.before` on leave the cursor where it is, so that a later look takes them.
    """
    # Without cursors, samples up to `recovered_at` may have been counted before they were lost.
    after = max(window.after, -inf if evidence.recovered_at is None else evidence.recovered_at)
    cursors = dict(evidence.cursors)
    until = evidence.sampled_until
    candidate_at = evidence.candidate_at
    resets = evidence.key_resets
    sums: dict[str, ArmSums] = {}
    voters: dict[str, ArmSums] = {}
    for one in merged(series):
        arm = arm_of(one, state)
        if not arm:
            continue
        key, rise, falls = series_key(one), 0.0, 0
        for cursor, more, fell in rises(
            cursors.get(key),
            (sample for sample in one.samples if sample[0] < window.before),
            from_zero=evidence.recovered_at is None,
            never_falls=never_falls(one),
        ):
            cursors[key] = cursor
            falls += fell
            if cursor.at > after:
                rise += more
                if more > 0 and one.name == COUNTED and one.labels["arm"] == "candidate":
                    candidate_at = max(candidate_at, cursor.at)
            if one.name not in BY_PARTITION:
                until = max(until, cursor.at)
        if one.name == KEYS:
            resets += falls
        _count(one, arm, rise, sums, voters)
    if cursors == evidence.cursors:
        return (
            evidence  # not an empty slice: looks without data would dilute the log and its replay
        )
    whole = _arms(sums.pop("", {}))
    piece = Slice(
        candidate=whole.candidate,
        stable=whole.stable,
        keys_weight=_tested_weight(evidence, state),
        keys_copies=_copies(cursors, resets),
        weight=state.weight,
        bake=state.weight == WEIGHT_SCALE,
    )
    pending = evidence.pending.plus(
        {segment: _arms(one) for segment, one in sums.items()},
        {voter: _voter_arms(one) for voter, one in voters.items()},
    )
    piece, judged, pending = _judged(evidence, state, judge, piece, pending, until)
    return RolloutEvidence(
        rollout_id=evidence.rollout_id,
        statistic=evidence.statistic,
        judge=judged,
        pending=pending,
        cursors=cursors,
        sampled_until=until,
        candidate_at=candidate_at,
        key_resets=resets,
        recovered_at=evidence.recovered_at,
        unreported=(
            *evidence.unreported[1 - MAX_UNREPORTED :],
            {"look": evidence.judge.looks, **piece.model_dump(exclude_defaults=True)},
        ),
    )


def _judged(
    evidence: RolloutEvidence,
    state: RolloutState,
    judge: Judge,
    piece: Slice,
    pending: PendingParts,
    until: float,
) -> tuple[Slice, JudgeState, PendingParts]:
    """The slice with the parts that are due, the judge's state after it, and what still waits.

    Segments are due after a time or a change of weight alone, as their bets may not end by what
    they bet on; voters also where a criterion is newly broken, to see at once on whom it rests.
    """
    moved = state.weight not in (0, evidence.judge.stage_weight)
    if moved or until - pending.since >= PARTS_S:
        piece = piece.model_copy(update={"segments": pending.segments, "voters": pending.voters})
        return piece, judge.advance(evidence.judge, piece), PendingParts(since=until)
    later = piece.model_copy(update={"voters_later": True})
    judged = judge.advance(evidence.judge, later)
    limit = state.error_limit
    broken = judge.breaches(judged, error_limit=limit)
    if not broken or broken <= judge.breaches(evidence.judge, error_limit=limit):
        return later, judged, pending
    piece = piece.model_copy(update={"voters": pending.voters})
    waits = pending.model_copy(update={"voters": {}})
    return piece, judge.advance(evidence.judge, piece), waits


def recorded_statistic(evidence: Sequence[dict[str, Any]]) -> int:
    """The version of the judge's rule that decisions name; the present one where there is none."""
    return evidence[0].get("statistic", 1) if evidence else STATISTIC


def recovered(rollout_id: str, evidence: Sequence[dict[str, Any]], judge: Judge) -> RolloutEvidence:
    """Evidence rebuilt from the decisions, where the file is gone.

    `evidence` begins with the last one that carries the judge's state whole; the slices of the
    later ones bring it up to date. Without cursors the first sample of each series only says
    where to count from: what came between the last decision and the next fetch may be lost,
    nothing is counted twice.
    """
    first = evidence[0] if evidence else {}
    last = evidence[-1] if evidence else {}
    judged = JudgeState.model_validate(first.get("judge", {}))
    for piece in (piece for one in evidence for piece in one.get("slices", ())):
        if piece["look"] >= judged.looks:
            judged = judge.advance(judged, Slice.model_validate(piece))
    until = float(last.get("sampled_until", 0.0))
    return RolloutEvidence(
        rollout_id=rollout_id,
        statistic=recorded_statistic(evidence),
        judge=judged,
        sampled_until=until,
        candidate_at=float(last.get("candidate_at", 0.0)),
        recovered_at=until if until > 0 else None,
    )


def carried(evidence: RolloutEvidence, *, whole: bool) -> dict[str, Any]:
    """The evidence as a decision carries it: enough to go on, and to replay the judge.

    `whole` adds the judge's state; the slices alone bring an earlier one up to date.
    """
    state = {"judge": evidence.judge.model_dump(exclude_defaults=True)} if whole else {}
    return {
        **state,
        "statistic": evidence.statistic,
        "sampled_until": evidence.sampled_until,
        "candidate_at": evidence.candidate_at,
        "slices": list(evidence.unreported),
    }


def _count(
    series: CounterSeries,
    arm: str,
    rise: float,
    segments: dict[str, ArmSums],
    voters: dict[str, ArmSums],
) -> None:
    """Add what a series rose by to its figures, of the whole, its segment and its voter."""
    if (about := voter_figure(series)) is not None:
        _add(voters, about[0], arm, about[1], rise)
    for figure in FIGURES:
        if figure.counts(series):
            for segment in {"", series.labels.get("segment", "")}:
                _add(segments, segment, arm, figure.name, rise)


def _together(some: dict[str, Arms], more: dict[str, Arms]) -> dict[str, Arms]:
    """Both by part, without those in which nothing was counted."""
    whole = {name: some.get(name, Arms()) + more.get(name, Arms()) for name in {*some, *more}}
    return {name: whole[name] for name in sorted(whole) if whole[name] != Arms()}


def _add(of: dict[str, ArmSums], part: str, arm: str, figure: str, rise: float) -> None:
    known = of.setdefault(part, {})
    known[arm, figure] = known.get((arm, figure), 0.0) + rise


def _arms(sums: ArmSums) -> Arms:
    return Arms(candidate=_counts("candidate", sums), stable=_counts("stable", sums))


def _voter_arms(sums: ArmSums) -> Arms:
    candidate, stable = (
        ArmCounts(**{name: rise for (of, name), rise in sums.items() if of == arm})
        for arm in ("candidate", "stable")
    )
    return Arms(candidate=candidate, stable=stable)


def _counts(arm: str, sums: ArmSums) -> ArmCounts:
    figures = {figure.name: sums.get((arm, figure.name), 0.0) for figure in FIGURES}
    stalls = max(0.0, figures["streams"] - figures.pop("unstalled"))
    over = {
        name.replace("within", "over"): max(0.0, figures["requests"] - figures.pop(name))
        for name in ("within_250ms", "within_500ms", "within_1s")
    }
    return ArmCounts(stalls=stalls, **over, **figures)


def _tested_weight(evidence: RolloutEvidence, state: RolloutState) -> int:
    """The weight that ruled during all of the slice after `evidence`; 0 where it was not one."""
    if state.weight_set_at is None or not 0 < state.weight < WEIGHT_SCALE:
        return 0
    return state.weight if evidence.sampled_until >= _unix(state.weight_set_at) + SETTLE_S else 0


def _copies(cursors: dict[str, Cursor], resets: int) -> int:
    """How often a key may have been counted: once by each router, again after its restart."""
    routers = sum(1 for key in cursors if f"__name__={KEYS}" in key and "arm=stable" in key)
    return max(1, routers + resets)


def _unix(moment: datetime) -> float:
    return moment.timestamp()
