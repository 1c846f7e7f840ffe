"""Replay: every decision of a rollout recomputed from its record, and the record's slices. Pure.

Both take a record piece by piece, oldest first, and keep none of it.
"""

# pyright: strict
from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.evidence import recorded_statistic
from services.rollout.judge import Judge
from services.rollout.strategy import Strategy
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import AnalysisOutcome, Decision

JUDGED = frozenset(
    (AnalysisOutcome.successful, AnalysisOutcome.failed, AnalysisOutcome.inconclusive)
)
TOLERANCE = 1e-3
"""Evidence is recorded with four digits."""
MAX_SHOWN = 1_000
"""Differences, and gaps, that a report lists."""
COLUMNS = ("decision", "at", "look", "segment", "weight", "arm", *ArmCounts.model_fields)


@dataclass(slots=True)
class ReplayReport:
    """What a replay found. `gaps` are looks whose slices the record does not have.

    Of differences and gaps the first MAX_SHOWN.
    """

    rollout_id: str
    decisions: int = 0
    recomputed: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    gaps: list[int] = field(default_factory=list[int])
    looks: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For the API."""
        return {
            "rollout_id": self.rollout_id,
            "decisions": self.decisions,
            "recomputed": self.recomputed,
            "looks": self.looks,
            "gaps": self.gaps,
            "differences": self.differences,
            "agrees": not self.differences and not self.gaps,
        }


class Replay:
    """Judges a rollout again from its slices alone, and compares with what was decided.

    Only criteria's findings are recomputed: that no engine was lost and that samples came in time
    is what the record says.
    """

    def __init__(self, rollout_id: str) -> None:
        self.report = ReplayReport(rollout_id)
        self._rule: tuple[Strategy, Judge] | None = None
        self._state = JudgeState()

    def add(self, decisions: Iterable[Decision]) -> None:
        """Go on with the next decisions.

        Raises:
            BadStrategy: the first decision's strategy is no longer valid.

        """
        for decision in decisions:
            if self._rule is None:
                strategy = parse(decision.strategy)
                statistic = recorded_statistic([decision.evidence])
                judge = Judge(strategy.judge, strategy.error_limits, statistic)
                self._rule = strategy, judge
            self._go_on(decision, *self._rule)

    def _go_on(self, decision: Decision, strategy: Strategy, judge: Judge) -> None:
        report, state, evidence = self.report, self._state, decision.evidence
        report.decisions += 1
        for raw in evidence.get("slices", ()):
            if raw["look"] > state.looks:
                report.gaps = [*report.gaps, state.looks][:MAX_SHOWN]
                state = state.but(looks=raw["look"])
            if raw["look"] == state.looks:
                state = judge.advance(state, Slice.model_validate(raw))
        self._state, report.looks = state, state.looks
        findings: list[dict[str, Any]] | None = evidence.get("findings")
        if not findings:
            return
        report.recomputed += 1
        step = min(_judged_step(decision), len(strategy.steps) - 1)
        verdict = judge.verdict(state, error_limit=strategy.error_limit(step))
        ours = {result.criterion: result.to_dict() for result in verdict.results}
        differences = (*report.differences, *_differences(decision, findings, ours))
        report.differences = list(differences[:MAX_SHOWN])


def _judged_step(decision: Decision) -> int:
    """The step whose limits were in force at the look: a move's own step is the one after it."""
    before = decision.evidence.get("judged_step")
    return before if isinstance(before, int) else decision.step


def _differences(
    decision: Decision, findings: Iterable[dict[str, Any]], ours: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for theirs in findings:
        mine = ours.get(theirs["criterion"])
        for name in ("state", "log_e", "threshold", "candidate_n", "stable_n"):
            recorded, computed = theirs.get(name), mine.get(name) if mine else None
            if not _same(recorded, computed):
                yield {
                    "decision": decision.decision_id,
                    "criterion": theirs["criterion"],
                    "field": name,
                    "recorded": recorded,
                    "recomputed": computed,
                }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= TOLERANCE * max(1.0, abs(one))
    return one == other


class SliceTable:
    """The slices that the judge was given as CSV, one row for each arm (and segment)."""

    def __init__(self) -> None:
        self._seen = -1

    @staticmethod
    def header() -> str:
        """The line of column names."""
        return ",".join(COLUMNS) + "\n"

    def rows(self, decisions: Iterable[Decision]) -> str:
        """The rows of the next decisions."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for decision in decisions:
            for raw in decision.evidence.get("slices", ()):
                if raw["look"] <= self._seen:
                    continue
                self._seen = raw["look"]
                piece = Slice.model_validate(raw)
                for segment, arms in [("", piece), *sorted(piece.segments.items())]:
                    for arm in ("candidate", "stable"):
                        counts: ArmCounts = getattr(arms, arm)
                        writer.writerow(
                            (
                                decision.decision_id,
                                decision.at.isoformat(),
                                self._seen,
                                segment,
                                piece.weight,
                                arm,
                                *(f"{value:g}" for value in counts.model_dump().values()),
                            )
                        )
        return text.getvalue()
