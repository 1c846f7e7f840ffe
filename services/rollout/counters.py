"""Counter series: which belong to a rollout, which are one counter, and what they rose by. Pure.

Every counter is differenced by itself, with the last sample that was counted as its cursor, so
samples that are fetched twice count once and Prometheus may lose all it has. A router creates its
series at 0 with the rollout, so a counter never seen before is counted from 0.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from services.rollout.state import RolloutState
from services.rollout.voters import FIGURES as VOTER_FIGURES
from services.rollout.voters import voter_key
from shared.voters import KINDS

REQUESTS = "ratchet_router_requests_total"
COUNTED = "ratchet_router_request_duration_seconds_count"
WITHIN = "ratchet_router_request_duration_seconds_bucket"
SLOW = "ratchet_router_slow_requests_total"
GAPS = "ratchet_router_token_gap_seconds_count"
SHORT_GAPS = "ratchet_router_token_gap_seconds_bucket"
ANSWERS = "ratchet_router_answers_total"
ANSWER_LENGTH = "ratchet_router_answer_length_total"
KEYS = "ratchet_router_assigned_keys_total"
SCORE_SUM = "ratchet_satisfaction_sum_total"
SCORE_COUNT = "ratchet_satisfaction_count_total"
VOTER_ATTEMPTS = "ratchet_router_voter_attempts_total"
VOTER_SCORE_SUM = "ratchet_satisfaction_voter_sum_total"
VOTER_SCORE_COUNT = "ratchet_satisfaction_voter_count_total"
BY_PARTITION = frozenset({SCORE_SUM, SCORE_COUNT, VOTER_SCORE_SUM, VOTER_SCORE_COUNT})
"""Series of these move from worker to worker with their partition, and never fall."""
PARTITION_LABELS = frozenset(
    {"__name__", "version", "arm", "rollout", "segment", "by", "voter", "partition"}
)
"""What names such a counter (design section 10)."""
ROUTER = "router"
ROUTER_LABELS = PARTITION_LABELS - {"partition"} | {
    "model", "outcome", "le", "behaviour", "figure", ROUTER,
}  # fmt: skip
"""What names a counter of one router's process, whatever else a scrape labels it."""

BREAKER = "ratchet_router_breaker_open"
"""1 while a router sends nothing to a candidate that failed time after time there."""

CAPPED = "capped"
"""Arm of the attempts that a router does not count in the judgement; the version says whose."""

STALL_EDGE = "2.0"
CRASH = "crash"
FAILURES = frozenset({"server_error", "timeout", CRASH})


BREAKER_STANDS_S = 20.0
"""How long a router's word on its breaker counts after its last scrape."""


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
        if not named or (series.labels.get("arm") == CAPPED) is not (self.label == "arm"):
            return False
        return not self.label or series.labels.get(self.label, "") in self.values


FIGURES = (
    Figure("failures", REQUESTS, "outcome", FAILURES),
    Figure("crashes", REQUESTS, "outcome", frozenset({CRASH})),
    Figure("requests", COUNTED),
    Figure("capped", COUNTED, "arm", frozenset({CAPPED})),
    Figure("slow", SLOW),
    Figure("streams", GAPS),
    Figure("unstalled", SHORT_GAPS, "le", frozenset({STALL_EDGE})),
    Figure("answers", ANSWERS, "behaviour", frozenset({"answered"})),
    Figure("refusals", ANSWERS, "behaviour", frozenset({"refused"})),
    Figure("cuts", ANSWERS, "behaviour", frozenset({"cut"})),
    Figure("tool_calls", ANSWERS, "behaviour", frozenset({"tool_called"})),
    Figure("tool_failures", ANSWERS, "behaviour", frozenset({"tool_failed"})),
    Figure("questions", ANSWERS, "behaviour", frozenset({"asked_back"})),
    Figure("language_switches", ANSWERS, "behaviour", frozenset({"language_switched"})),
    Figure("length_sum", ANSWER_LENGTH),
    Figure("within_250ms", WITHIN, "le", frozenset({"0.25"})),
    Figure("within_500ms", WITHIN, "le", frozenset({"0.5"})),
    Figure("within_1s", WITHIN, "le", frozenset({"1.0"})),
    Figure("keys", KEYS),
    Figure("score_sum", SCORE_SUM),
    Figure("scores", SCORE_COUNT),
)
"""What is counted of each arm. All are fields of `ArmCounts` but those of a
bucket: `unstalled` gives `stalls`, `within_1s` gives `over_1s` and so on."""
EDGES = tuple(sorted({value for one in FIGURES if one.label == "le" for value in one.values}))
"""Upper edges of the buckets that are asked for."""
VOTER_SCORES = {VOTER_SCORE_SUM: "score_sum", VOTER_SCORE_COUNT: "scores"}
"""Figures of voters by metric; of their attempts a label names the figure."""
METRICS = tuple(
    dict.fromkeys((*(figure.metric for figure in FIGURES), VOTER_ATTEMPTS, *VOTER_SCORES))
)


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


class Cursor(BaseModel):
    """The last sample of a series that was counted."""

    model_config = ConfigDict(frozen=True)
    at: float
    value: float


def quoted(text: str) -> str:
    """A label value inside double quotes in PromQL."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def newest(series: Iterable[CounterSeries], state: RolloutState) -> float:
    """Unix time of the newest sample that routers gave of this rollout; 0 where none did."""
    return max(
        (
            one.samples[-1][0]
            for one in series
            if one.samples and one.name not in BY_PARTITION and belongs(one, state)
        ),
        default=0.0,
    )


def belongs(series: CounterSeries, state: RolloutState) -> bool:
    """Whether a series is about this rollout, and its version is that of its arm."""
    labels = series.labels
    if labels.get("rollout") != state.rollout_id:
        return False
    wanted = {"candidate": state.candidate, "stable": state.stable}.get(labels.get("arm", ""))
    if wanted is None:
        return False
    return series.name == KEYS or labels.get("version") == wanted


def arm_of(series: CounterSeries, state: RolloutState) -> str:
    """The arm whose figures a series adds to; empty where it is not about this rollout."""
    if belongs(series, state):
        return series.labels["arm"]
    if series.labels.get("arm") != CAPPED or series.labels.get("rollout") != state.rollout_id:
        return ""
    versions = {state.candidate: "candidate", state.stable: "stable"}
    return versions.get(series.labels.get("version", ""), "")


def voter_figure(series: CounterSeries) -> tuple[str, str] | None:
    """The voter that a series is about ("tenant:3fa9c1d2"), and the figure; None for other series."""
    figure = VOTER_SCORES.get(series.name, "")
    if series.name == VOTER_ATTEMPTS:
        figure = series.labels.get("figure", "")
    kind, label = series.labels.get("by", ""), series.labels.get("voter", "")
    known = figure in VOTER_FIGURES and kind in KINDS and label
    return (voter_key(kind, label), figure) if known else None


def copies(series: Iterable[CounterSeries], state: RolloutState) -> list[str]:
    """Routers of a rollout that several scrapes read at the same time, with each scrape's labels."""
    spans: dict[str, dict[str, tuple[float, float]]] = {}
    for one in series:
        if one.samples and one.name == COUNTED and belongs(one, state) and ROUTER in one.labels:
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


def breakers_open(series: Iterable[CounterSeries], state: RolloutState) -> list[str]:
    """Routers whose circuit breaker of the rollout's candidate was open at the last scrape."""
    mine = [one for one in series if one.labels.get("rollout") == state.rollout_id and one.samples]
    last = max((one.samples[-1][0] for one in mine), default=0.0)
    return sorted(
        {
            one.labels.get(ROUTER, "")
            for one in mine
            if one.name == BREAKER
            and one.samples[-1][1] > 0
            and one.samples[-1][0] > last - BREAKER_STANDS_S
        }
    )


def spoiled(series: Iterable[CounterSeries], state: RolloutState) -> str:
    """What the rollout's counters cannot tell now, as a newest sample is no count; else empty."""
    names = sorted({one.name for one in series if one.spoiled is not None and belongs(one, state)})
    return f"the newest sample of {', '.join(names)} is no count" if names else ""


def merged(series: Iterable[CounterSeries]) -> list[CounterSeries]:
    """Series of one counter as one, in order of time: two scrapes of a router count once."""
    groups: dict[str, list[CounterSeries]] = {}
    for one in series:
        if one.name in METRICS:
            groups.setdefault(series_key(one), []).append(one)
    return [group[0] if len(group) == 1 else _together(group) for group in groups.values()]


def _together(group: Sequence[CounterSeries]) -> CounterSeries:
    samples = sorted({sample for one in group for sample in one.samples})
    return CounterSeries(labels=group[0].labels, samples=tuple(samples))


def never_falls(series: CounterSeries) -> bool:
    """Whether a fall is a copy that lags; a router's process and a partition never start anew."""
    return series.name in BY_PARTITION or ROUTER in series.labels


def series_key(series: CounterSeries) -> str:
    """Name of a series' counter: one wherever it is scraped, whatever else a scrape labels it."""
    wanted = PARTITION_LABELS if series.name in BY_PARTITION else ROUTER_LABELS
    every = not never_falls(series)
    shown = [(k, v) for k, v in series.labels.items() if every or k in wanted]
    return ",".join(f"{k}={v}" for k, v in sorted(shown))


def rises(
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
