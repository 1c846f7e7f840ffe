"""Candidate adapter of one attempt: the trainer's results read back and put before the gate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from services.training.dataset_rows import JUDGE
from services.training.errors import TrainerFailed
from services.training.gate import GateLimits, derive, judge_gate
from services.training.snapshot import Manifest
from services.training.trainers.job import Stage, read_rows
from shared.contracts.events.training import TrainingRequested
from shared.contracts.events.versions import Fingerprint, GateResult
from shared.contracts.recipes import ONLINE

SHOWN_CASES = 5
"""Failure cases that a check names."""


@dataclass(frozen=True)
class Candidate:
    """A trained adapter with everything measured of it."""

    folder: Path
    figures: dict[str, float]
    gate: GateResult
    fingerprint: Fingerprint
    packages: dict[str, str]

    @property
    def adapter(self) -> Path:
        """The LoRA's files."""
        return self.folder / "adapter"

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Answers of both arms: those whose scores moved most, up and down."""
        rows = read_rows(self.folder / "answers.jsonl")
        return sorted(rows, key=_moved, reverse=True)[:count]

    @property
    def lost(self) -> list[dict[str, Any]]:
        """Failure cases and general tasks that the parent got right and the candidate wrong."""
        rows = read_rows(self.folder / "drift.jsonl")
        return [row for row in rows if row["parent"] > 0 >= row["candidate"]]


def read_candidate(
    folder: Path,
    judge: Path,
    *,
    job: TrainingRequested,
    manifest: Manifest,
    limits: GateLimits,
    known: Mapping[str, float],
) -> Candidate:
    """The candidate of a finished attempt; `known` are figures of its data.

    A diverged training measures NaN and infinity, which JSON and so the log cannot hold. Such
    figures are left out, for their checks to fail, and counted as `not_finite`.
    """
    measured = {"judge_pairs": float(manifest.files[JUDGE].rows)}
    measured |= _numbers(judge / "reward.json", "judge_")
    measured |= _numbers(folder / f"{job.recipe_method}.json", "train_")
    measured |= _numbers(folder / "proxy.json", "proxy_")
    measured |= _numbers(folder / "evaluate.json", "")
    measured |= _numbers(folder / "drift.json", "")
    measured |= known
    answered = json.loads((folder / "fingerprint.json").read_bytes())
    measured |= {f"distance_to_{name}": far for name, far in answered["distances"].items()}
    figures = derive(_finite(measured))
    candidate = Candidate(
        folder=folder,
        figures=figures,
        gate=judge_gate(job.method, figures, limits),
        fingerprint=Fingerprint.model_validate(answered),
        packages=json.loads((folder / "packages.json").read_bytes()),
    )
    return replace(candidate, gate=_with_names(candidate.gate, candidate.lost))


def judge_figures(judge: Path) -> dict[str, float]:
    """What is known of a judge: its data, and its agreement with raters it never saw.

    Figures that are no finite numbers are left out and counted as `not_finite`.
    """
    return _finite(_numbers(judge / "reward.json", "judge_"))


def require_servable(candidate: Candidate) -> None:
    """Refuse a candidate whose weights are broken, whoever lets it past the gate.

    Raises:
        TrainerFailed: its fingerprint has a log-probability that is no finite number.

    """
    for text in candidate.fingerprint.texts:
        if not all(map(math.isfinite, text.logprobs)):
            raise TrainerFailed(
                "the candidate's fingerprint is no finite numbers: its training diverged and no "
                "engine can serve it; lower learning_rate or max_grad_norm"
            )


def stages(method: str, *, judged: bool) -> tuple[Stage, ...]:
    """What a trainer does for a method. The judge is trained where it has data enough."""
    if method == "reward":
        return ("reward",)
    judge: tuple[Stage, ...] = ("reward",) if judged and method != "sft" else ()
    return (*judge, *training_stages(method), "evaluate", "drift", "fingerprint")


def training_stages(method: str) -> tuple[Stage, ...]:
    """What makes a method's adapter, without measuring it."""
    objective: tuple[Stage, ...] = ("proxy",) if method in ONLINE else ()
    return (*objective, cast("Stage", method))


def _moved(row: Mapping[str, Any]) -> float:
    """How far the judge's score of an answer moved; NaN counts as none."""
    moved = abs(row.get("candidate_score", 0.0) - row.get("parent_score", 0.0))
    return moved if math.isfinite(moved) else 0.0


def _with_names(gate: GateResult, lost: Sequence[Mapping[str, Any]]) -> GateResult:
    """The result with the failure cases named that are failed again."""
    names = [str(row.get("case_id", "")) for row in lost if row["kind"] == "cases"]
    if not names:
        return gate
    more = f" and {len(names) - SHOWN_CASES} more" if len(names) > SHOWN_CASES else ""
    shown = f"; failed again: {', '.join(names[:SHOWN_CASES])}{more} (ratchet cases show)"
    checks = tuple(
        check.model_copy(update={"detail": check.detail + shown})
        if check.name == "cases"
        else check
        for check in gate.checks
    )
    return gate.model_copy(update={"checks": checks})


def _finite(measured: dict[str, float]) -> dict[str, float]:
    kept = {name: value for name, value in measured.items() if math.isfinite(value)}
    lost = len(measured) - len(kept)
    return kept | {"not_finite": float(lost)} if lost else kept


def _numbers(path: Path, prefix: str) -> dict[str, float]:
    """A stage's figures, each name with the prefix unless it has it already."""
    if not path.exists():
        return {}
    found: dict[str, float] = json.loads(path.read_bytes())
    return {
        name if name.startswith(prefix) else f"{prefix}{name}": value
        for name, value in found.items()
    }
