"""Evidence of one rollout: raw counter samples -> what is new -> a slice for the judge. Pure.

Every series is differenced by itself, with the last sample that was counted as its cursor, so
samples that are fetched twice count once and Prometheus may lose all it has. A router creates its
series at 0 with the rollout, so a series never seen before is counted from 0.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.judge import Judge
from services.rollout.state import RolloutState
from shared.contracts.events.base import WEIGHT_SCALE

REQUESTS = "ratchet_router_requests_total"
COUNTED = "ratchet_router_request_duration_seconds_count"
FAST = "ratchet_router_request_duration_seconds_bucket"
KEYS = "ratchet_router_assigned_keys_total"
SCORE_SUM = "ratchet_satisfaction_sum_total"
SCORE_COUNT = "ratchet_satisfaction_count_total"
BY_PARTITION = frozenset({SCORE_SUM, SCORE_COUNT})
"""Series of these move from worker to worker with their partition, and never fall."""
PARTITION_LABELS = frozenset({"__name__", "version", "arm", "rollout", "segment", "partition"})
"""What names such a counter (design section 10)."""
ROUTER = "router"
ROUTER_LABELS = PARTITION_LABELS - {"partition"} | {"model", "outcome", "le", ROUTER}
"""What names a counter of one router's process, whatever else a scrape labels it."""

SLOW_EDGE = "2.0"
CRASH = "crash"
FAILURES = frozenset({"server_error", "timeout", CRASH})


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of an arm, and the counters that it is the sum of: a metric, and a label's values."""

    name: str
    metric: str
    label: str = ""
    values: frozenset[str] = frozenset()

    def counts(self, series: CounterSeries) -> bool:
        """Whether a series adds to this figure."""
        named = series.name == self.metric
        return named and (not self.label or series.labels.get(self.label, "") in self.values)


FIGURES = (
    Figure("failures", REQUESTS, "outcome", FAILURES),
    Figure("crashes", REQUESTS, "outcome", frozenset({CRASH})),
    Figure("requests", COUNTED),
    Figure("fast", FAST, "le", frozenset({SLOW_EDGE})),
    Figure("keys", KEYS),
    Figure("score_sum", SCORE_SUM),
    Figure("scores", SCORE_COUNT),
)
"""What is counted of each arm. All are fields of `ArmCounts` but `fast`, which gives `slow`."""
METRICS = tuple(dict.fromkeys(figure.metric for figure in FIGURES))

WINDOW_LEAST_S = 15.0
WINDOW_MOST_S = 120.0
"""How far back a fetch asks: what is new, and what may have come late."""
SETTLE_S = 10.0
"""Seconds after a change of weight whose keys are not tested: some fell under the old one."""
MAX_UNREPORTED = 64
"""Slices kept until the next decision carries them; an outage of Kafka for longer loses the
oldest to the replay, never to the judge."""
MAX_SERIES = 50_000


@dataclass(frozen=True, slots=True)
class CounterSeries:
    """One series of a range vector: its labels, and (unix seconds, value) in order of time.

    `spoiled` is the time of a newest sample that no counter can have (NaN, below 0), and None where
    the newest is good. Such samples are not among `samples`.
    """

    labels: dict[str, str]
    samples: tuple[tuple[float, float], ...]
    spoiled: float | None = None

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.labels.get("__name__", "")


@dataclass(frozen=True, slots=True)
class SampleWindow:
    """The part of a fetch that is evidence, in unix seconds.

    Samples up to `after` only move the cursors: what rose until then is never judged. Samples from
    `before` on are left where they are, for a later look.
    """

    after: float = -inf
    before: float = inf


class Cursor(BaseModel):
    """The last sample of a series that was counted."""

    model_config = ConfigDict(frozen=True)
    at: float
    value: float


class RolloutEvidence(BaseModel):
    """All evidence of one rollout; kept in a file and, but for the cursors, in its decisions."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    rollout_id: str
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
    unreported: tuple[dict[str, Any], ...] = ()

    def reported(self) -> RolloutEvidence:
        """The same after a decision carried its slices."""
        return self.model_copy(update={"unreported": ()})


def query(rollout_id: str, window_s: float) -> str:
    """PromQL for all series of a rollout: raw samples, one consistent read, no rate()."""
    return (
        f'{{__name__=~"{"|".join(METRICS)}",rollout="{quoted(rollout_id)}",'
        f'arm=~"stable|candidate",le=~"{SLOW_EDGE}|",outcome=~"server_error|timeout|crash|"}}'
        f"[{round(window_s)}s]"
    )


def window_s(evidence: RolloutEvidence, now: float) -> float:
    """How far back to ask, in seconds."""
    if evidence.sampled_until == 0.0:
        return WINDOW_MOST_S
    return min(max(now - evidence.sampled_until + WINDOW_LEAST_S, WINDOW_LEAST_S), WINDOW_MOST_S)


def quoted(text: str) -> str:
    """A label value inside double quotes in PromQL."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def newest(series: Iterable[CounterSeries], state: RolloutState) -> float:
    """Unix time of the newest sample that routers gave of this rollout; 0 where none did."""
    return max(
        (
            one.samples[-1][0]
            for one in series
            if one.samples and one.name not in BY_PARTITION and _belongs(one, state)
        ),
        default=0.0,
    )


def crashes(
    evidence: RolloutEvidence, series: Iterable[CounterSeries], state: RolloutState
) -> Iterator[float]:
    """Unix times of the samples, not counted yet, at which crashes of either arm rose."""
    from_zero = evidence.recovered_at is None
    for one in _merged(series):
        if one.name == REQUESTS and one.labels.get("outcome") == CRASH and _belongs(one, state):
            cursor, constant = evidence.cursors.get(_key(one)), _never_falls(one)
            for new, rise, _ in _rises(
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
    sums: dict[tuple[str, str], float] = {}
    for one in _merged(series):
        arm = one.labels.get("arm", "")
        if not _belongs(one, state):
            continue
        key, rise, falls = _key(one), 0.0, 0
        for cursor, more, fell in _rises(
            cursors.get(key),
            (sample for sample in one.samples if sample[0] < window.before),
            from_zero=evidence.recovered_at is None,
            never_falls=_never_falls(one),
        ):
            cursors[key] = cursor
            falls += fell
            if cursor.at > after:
                rise += more
                if more > 0 and one.name == COUNTED and arm == "candidate":
                    candidate_at = max(candidate_at, cursor.at)
            if one.name not in BY_PARTITION:
                until = max(until, cursor.at)
        if one.name == KEYS:
            resets += falls
        for figure in FIGURES:
            if figure.counts(one):
                sums[arm, figure.name] = sums.get((arm, figure.name), 0.0) + rise
    if cursors == evidence.cursors:
        return (
            evidence  # not an empty slice: looks without data would dilute the log and its replay
        )
    piece = Slice(
        candidate=_counts("candidate", sums),
        stable=_counts("stable", sums),
        keys_weight=_tested_weight(evidence, state),
        keys_copies=_copies(cursors, resets),
        weight=state.weight,
        bake=state.weight == WEIGHT_SCALE,
    )
    return RolloutEvidence(
        rollout_id=evidence.rollout_id,
        judge=judge.advance(evidence.judge, piece),
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
        "sampled_until": evidence.sampled_until,
        "candidate_at": evidence.candidate_at,
        "slices": list(evidence.unreported),
    }


def _belongs(series: CounterSeries, state: RolloutState) -> bool:
    """Whether a series is about this rollout, and its version is that of its arm."""
    labels = series.labels
    if labels.get("rollout") != state.rollout_id:
        return False
    wanted = {"candidate": state.candidate, "stable": state.stable}.get(labels.get("arm", ""))
    if wanted is None:
        return False
    return series.name == KEYS or labels.get("version") == wanted


def _merged(series: Iterable[CounterSeries]) -> list[CounterSeries]:
    """Series of one counter as one, in order of time: two scrapes of a router count once."""
    groups: dict[str, list[CounterSeries]] = {}
    for one in series:
        if one.name in METRICS:
            groups.setdefault(_key(one), []).append(one)
    return [group[0] if len(group) == 1 else _together(group) for group in groups.values()]


def _together(group: Sequence[CounterSeries]) -> CounterSeries:
    samples = sorted({sample for one in group for sample in one.samples})
    return CounterSeries(labels=group[0].labels, samples=tuple(samples))


def copies(series: Iterable[CounterSeries], state: RolloutState) -> list[str]:
    """Routers of a rollout that several scrapes read at the same time, with each scrape's labels."""
    spans: dict[str, dict[str, tuple[float, float]]] = {}
    for one in series:
        if one.samples and one.name == COUNTED and _belongs(one, state) and ROUTER in one.labels:
            target = ",".join(
                f"{k}={v}" for k, v in sorted(one.labels.items()) if k not in ROUTER_LABELS
            )
            span = (one.samples[0][0], one.samples[-1][0])
            spans.setdefault(one.labels[ROUTER], {})[target] = span
    return [
        f"router {router} is scraped as {' and as '.join(sorted(targets))}; counted once"
        for router, targets in sorted(spans.items())
        if len(targets) > 1
        and max(first for first, _ in targets.values()) < min(last for _, last in targets.values())
    ]


def spoiled(series: Iterable[CounterSeries], state: RolloutState) -> str:
    """What the rollout's counters cannot tell now, as a newest sample is no count; else empty."""
    names = sorted({one.name for one in series if one.spoiled is not None and _belongs(one, state)})
    return f"the newest sample of {', '.join(names)} is no count" if names else ""


def _never_falls(series: CounterSeries) -> bool:
    """Whether a fall is a copy that lags; a router's process and a partition never start anew."""
    return series.name in BY_PARTITION or ROUTER in series.labels


def _key(series: CounterSeries) -> str:
    # A counter is one counter wherever it is scraped, whatever else a scrape labels it.
    wanted = PARTITION_LABELS if series.name in BY_PARTITION else ROUTER_LABELS
    every = not _never_falls(series)
    shown = [(k, v) for k, v in series.labels.items() if every or k in wanted]
    return ",".join(f"{k}={v}" for k, v in sorted(shown))


def _rises(
    cursor: Cursor | None,
    samples: Iterable[tuple[float, float]],
    *,
    from_zero: bool,
    never_falls: bool = False,
) -> Iterator[tuple[Cursor, float, bool]]:
    """Each new sample of a counter, what it rose by there, and whether it fell to 0 before.

    A counter without a cursor is counted from 0, unless its start may have been counted already.
    """
    for at, value in samples:
        if cursor is None:
            rise, fell = (value if from_zero else 0.0), False
        elif at <= cursor.at or (value < cursor.value and never_falls):
            continue
        else:
            fell = value < cursor.value
            rise = value if fell else value - cursor.value
        cursor = Cursor(at=at, value=value)
        yield cursor, rise, fell


def _counts(arm: str, sums: dict[tuple[str, str], float]) -> ArmCounts:
    figures = {figure.name: sums.get((arm, figure.name), 0.0) for figure in FIGURES}
    slow = max(0.0, figures["requests"] - figures.pop("fast"))
    return ArmCounts(slow=slow, **figures)


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
