"""Decisions are recomputed from their record, and what was changed in it is found."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from math import exp, log
from pathlib import Path

import numpy as np
import pytest

from benchmarks.judge.crowd import ArmTruth, SimulatedRollout, simulate
from services.rollout.audit import AuditLog
from services.rollout.counts import JudgeState
from services.rollout.criteria import STATISTIC
from services.rollout.judge import Judge
from services.rollout.replay import MAX_SHOWN, Replay, ReplayReport, SliceTable
from services.rollout.strategy import JudgeSettings
from services.rollout.verdict import CriterionState
from shared.contracts.events.rollouts import Decision
from tests.unit.rollout.fakes import ControllerBench, ControllerHarness, begun, traffic


async def judged(bench: ControllerBench) -> tuple[ControllerHarness, str, list[Decision]]:
    """A rollout whose candidate fails after a while, and its record."""
    harness, state = await begun(bench)
    for n in range(1, 12):
        traffic(harness, state, 10.0 * n, failures=3.0 * (n - 1))
        await harness.round()
    batches = AuditLog(harness.log).batches(state.rollout_id)
    return harness, state.rollout_id, [one async for batch in batches for one in batch]


def replay(name: str, decisions: Iterable[Decision]) -> ReplayReport:
    replaying = Replay(name)
    replaying.add(decisions)
    return replaying.report


def slices_csv(decisions: Iterable[Decision]) -> str:
    return SliceTable.header() + SliceTable().rows(decisions)


async def test_every_decision_is_recomputed_from_its_record(bench: ControllerBench) -> None:
    _, name, decisions = await judged(bench)
    assert decisions[-1].kind.value == "rollback"
    report = replay(name, decisions)
    assert (report.differences, report.gaps) == ([], [])
    assert report.recomputed > 2
    assert report.looks > 3


async def test_a_changed_record_and_a_missing_slice_are_found(bench: ControllerBench) -> None:
    _, name, decisions = await judged(bench)
    last = decisions[-1]
    findings = [{**one, "log_e": one["log_e"] + 1} for one in last.evidence["findings"]]
    forged = last.model_copy(update={"evidence": {**last.evidence, "findings": findings}})
    report = replay(name, [*decisions[:-1], forged])
    assert {one["field"] for one in report.differences} == {"log_e"}
    middle = next(n for n, one in enumerate(decisions) if one.evidence.get("slices"))
    assert replay(name, decisions[:middle] + decisions[middle + 1 :]).gaps == [0]


async def test_a_record_is_replayed_piece_by_piece_and_kept_nowhere(bench: ControllerBench) -> None:
    """Days of looks: what a replay holds does not grow with them."""
    _, name, (start, *_) = await judged(bench)
    arm = {"requests": 30.0, "failures": 1.0, "scores": 3.0, "score_sum": 2.0}
    gaps = [{"look": 3 * n, "candidate": arm, "stable": arm} for n in range(3_000)]

    def batch(first: int) -> list[Decision]:
        return [
            start.model_copy(update={"evidence": {"slices": [dict(one)]}})
            for one in gaps[first : first + 100]
        ]

    replaying = Replay(name)
    replaying.add([start])
    tracemalloc.start()
    before = 0
    for first in range(0, len(gaps), 100):
        replaying.add(batch(first))
        if first == MAX_SHOWN:
            before, _ = tracemalloc.get_traced_memory()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (replaying.report.decisions, replaying.report.looks) == (3_001, 3 * 2_999 + 1)
    assert len(replaying.report.gaps) == MAX_SHOWN
    assert after - before < 50_000


async def test_the_exported_slices_add_up_to_what_was_judged(bench: ControllerBench) -> None:
    _, _, decisions = await judged(bench)
    rows = list(csv.DictReader(io.StringIO(slices_csv(decisions))))
    mine = [row for row in rows if row["arm"] == "candidate" and not row["segment"]]
    errors = next(one for one in decisions[-1].evidence["findings"] if one["criterion"] == "errors")
    assert sum(float(row["requests"]) for row in mine) == errors["candidate_n"]
    assert [int(row["look"]) for row in mine] == list(range(len(mine)))


async def test_a_record_of_the_first_statistic_is_replayed_by_it(bench: ControllerBench) -> None:
    """Decisions from before the rule had versions name none."""
    _, name, decisions = await judged(bench)
    assert decisions[0].evidence["statistic"] == STATISTIC
    old = [
        one.model_copy(
            update={"evidence": {k: v for k, v in one.evidence.items() if k != "statistic"}}
        )
        for one in decisions
    ]
    report = replay(name, old)
    assert {one["field"] for one in report.differences} >= {"log_e", "threshold"}
    errors = next(
        one
        for one in report.differences
        if (one["criterion"], one["field"]) == ("errors", "threshold")
    )
    assert errors["recomputed"] == pytest.approx(log(10 / 0.01), abs=1e-4)
    assert errors["recorded"] == pytest.approx(log(20 / 9 / 0.01), abs=1e-4)


@pytest.mark.verify
@pytest.mark.timeout(600)
async def test_another_authors_test_reaches_the_same_verdict(
    bench: ControllerBench, tmp_path: Path
) -> None:
    """`RateRatioTest` of sequential-analysis (AGPL) judges exported slices in its own environment."""
    _, _, (first, *_) = await judged(bench)
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    package = "sequential-analysis==0.4.0"
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    script = Path(__file__).parents[3] / "benchmarks/check_slices.py"
    for seed, errors in ((1, 0.1), (2, 0.05), (3, 0.01), (4, 0.015)):
        case = SimulatedRollout("exported", candidate=ArmTruth(errors=errors))
        pieces = [looks[0].piece for looks in simulate(case, np.random.default_rng(seed))]
        judge, state = Judge(JudgeSettings(), ()), JudgeState()
        for piece in pieces:
            state = judge.advance(state, piece)
        result = judge.verdict(state, error_limit=None).results[0]
        slices = [{"look": n, **piece.model_dump()} for n, piece in enumerate(pieces)]
        record = first.model_copy(update={"evidence": {"slices": slices}})
        file = tmp_path / "slices.csv"
        file.write_text(slices_csv([record]))
        said = subprocess.run(
            [python, script, file, "--alpha", f"{exp(-result.threshold)}"],
            check=False,
            capture_output=True,
            text=True,
        )
        theirs = next(one for one in said.stdout.splitlines() if one.startswith("errors: "))
        assert result.criterion == "errors"
        assert ("broken" in theirs) is (result.state is CriterionState.breached), (errors, theirs)
        assert ("broken" in theirs) is (errors > 0.015)
