"""Replay: every decision of a rollout recomputed from its record, and the record's slices. Pure."""

# pyright: strict
from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.evidence import recorded_statistic
from services.rollout.judge import Judge
from services.rollout.strategy import parse
from shared.contracts.events.rollouts import AnalysisOutcome, Decision

JUDGED = frozenset(
    (AnalysisOutcome.successful, AnalysisOutcome.failed, AnalysisOutcome.inconclusive)
)
TOLERANCE = 1e-3
"""Evidence is recorded with four digits."""
COLUMNS = ("decision", "at", "look", "segment", "weight", "arm", *ArmCounts.model_fields)


@dataclass(slots=True)
class ReplayReport:
    """What a replay found. `gaps` are looks whose slices the record does not have."""

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


def replay(rollout_id: str, decisions: Sequence[Decision]) -> ReplayReport:
    """Judge a rollout again from its slices alone, and compare with what was decided.

    Only criteria's findings are recomputed: that no engine was lost and that samples came in time
    is what the record says.

    Raises:
        BadStrategy: the first decision's strategy is no longer valid.

    """
    report = ReplayReport(rollout_id, decisions=len(decisions))
    if not decisions:
        return report
    strategy = parse(decisions[0].strategy)
    statistic = recorded_statistic([decisions[0].evidence])
    judge, state = Judge(strategy.judge, strategy.error_limits, statistic), JudgeState()
    for decision in decisions:
        evidence = decision.evidence
        for raw in evidence.get("slices", ()):
            if raw["look"] > state.looks:
                report.gaps.append(state.looks)
                state = state.but(looks=raw["look"])
            if raw["look"] == state.looks:
                state = judge.advance(state, Slice.model_validate(raw))
        findings: list[dict[str, Any]] | None = evidence.get("findings")
        if not findings:
            continue
        report.recomputed += 1
        step = min(_judged_step(decision), len(strategy.steps) - 1)
        verdict = judge.verdict(state, error_limit=strategy.error_limit(step))
        ours = {result.criterion: result.to_dict() for result in verdict.results}
        report.differences += _differences(decision, findings, ours)
    report.looks = state.looks
    return report


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


def slices_csv(decisions: Iterable[Decision]) -> str:
    """The slices that the judge was given, one row for each arm (and segment), as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    seen = -1
    for decision in decisions:
        for raw in decision.evidence.get("slices", ()):
            if raw["look"] <= seen:
                continue
            seen = raw["look"]
            piece = Slice.model_validate(raw)
            for segment, arms in [("", piece), *sorted(piece.segments.items())]:
                for arm in ("candidate", "stable"):
                    counts: ArmCounts = getattr(arms, arm)
                    writer.writerow(
                        (
                            decision.decision_id,
                            decision.at.isoformat(),
                            seen,
                            segment,
                            piece.weight,
                            arm,
                            *(f"{value:g}" for value in counts.model_dump().values()),
                        )
                    )
    return text.getvalue()
