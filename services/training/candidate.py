"""Candidate adapter of one attempt: the trainer's results read back and put before the gate."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from services.training.ai_opinion import RESULT as AI_RESULT
from services.training.dataset_manifest import Manifest
from services.training.dataset_rows import JUDGE
from services.training.errors import TrainerFailed
from services.training.evaluation import EvaluationSettings
from services.training.gate import GateLimits, derive, judge_gate
from services.training.measures.score import weighted_scores
from services.training.measures.segments import SegmentWins, segment_figures, segment_wins
from services.training.measures.tasks import tasks_of
from services.training.trainers.agreement import predecessor_judges
from services.training.trainers.job import Stage, noted_steps, read_rows
from shared.contracts.events.training import TrainingRequested
from shared.contracts.events.versions import Fingerprint, GateResult
from shared.contracts.recipes import ONLINE

ARMS = ("parent", "candidate")
SHOWN_CASES = 5
"""Failure cases or probes that a check names."""
SHOWN_CHARACTERS = 80
"""Of a prompt that a check names."""


@dataclass(frozen=True)
class Candidate:
    """A trained adapter with everything measured of it."""

    folder: Path
    figures: dict[str, float]
    gate: GateResult
    fingerprint: Fingerprint
    packages: dict[str, str]
    segments: tuple[SegmentWins, ...] = ()
    """Segments of the judged prompts, the one that loses most first."""
    predecessor: str = ""
    """The reward model published before, which the job's own judge was compared with."""

    @property
    def adapter(self) -> Path:
        """The LoRA's files."""
        return self.folder / "adapter"

    @property
    def judged_by(self) -> str:
        """The published reward model that judged; empty where the job's own did."""
        return self.predecessor if predecessor_judges(self.figures) else ""

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Answers of both arms: those whose scores moved most, up and down."""
        rows = read_rows(self.folder / "answers.jsonl")
        return sorted(rows, key=_moved, reverse=True)[:count]

    @property
    def lost(self) -> list[dict[str, Any]]:
        """What the parent got right and the candidate wrong: failure cases, tasks, questions."""
        questions = [
            {**row, "good": row["parent_answer"], "bad": row["candidate_answer"]}
            for row in read_rows(self.folder / "questions.jsonl")
        ]
        rows = [*read_rows(self.folder / "drift.jsonl"), *questions]
        return [row for row in rows if row["parent"] > 0 >= row["candidate"]]


def read_candidate(
    folder: Path,
    judge: Path,
    *,
    job: TrainingRequested,
    manifest: Manifest,
    limits: GateLimits,
    evaluation: EvaluationSettings,
    known: Mapping[str, float],
    first_gone: str = "",
    predecessor: str = "",
) -> Candidate:
    """The candidate of a finished attempt; `known` are figures of its data.

    `first_gone` says why drift from the chain's first version was not measured; `predecessor` is
    the reward model published before.

    A diverged training measures NaN and infinity, which JSON and so the log cannot hold. Such
    figures are left out, for their checks to fail, and counted as `not_finite`.
    """
    measured = {"judge_pairs": float(manifest.files[JUDGE].rows)}
    measured |= _numbers(judge / "reward.json", "judge_")
    measured |= _numbers(folder / f"{job.recipe_method}.json", "train_")
    measured |= _numbers(folder / "proxy.json", "proxy_")
    measured |= _numbers(folder / "evaluate.json", "")
    measured |= _numbers(folder / "quality.json", "")
    measured |= _numbers(folder / "drift.json", "")
    measured |= _numbers(folder / "harness.json", "")
    measured |= _numbers(folder / AI_RESULT, "ai_")
    segments = segment_wins(_finite_rows(folder / "answers.jsonl"))
    measured |= segment_figures(segments)
    measured |= known
    answered = json.loads((folder / "fingerprint.json").read_bytes())
    measured |= {f"distance_to_{name}": far for name, far in answered["distances"].items()}
    figures = derive(_finite(measured))
    figures |= weighted_scores(figures, evaluation.weights)
    candidate = Candidate(
        folder=folder,
        figures=figures,
        gate=judge_gate(job.method, figures, limits, first_gone),
        fingerprint=Fingerprint.model_validate(answered),
        packages=json.loads((folder / "packages.json").read_bytes()),
        segments=tuple(segments),
        predecessor=predecessor,
    )
    return replace(candidate, gate=_with_names(candidate))


def losses(attempt: Path, most: int) -> dict[str, list[tuple[int, float]]]:
    """By stage, the finite losses that an attempt noted by step, thinned evenly to `most`.

    A training that was killed notes some steps again: the last loss of each counts.
    """
    path = attempt / "progress.jsonl"
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for one in noted_steps(path.read_bytes() if path.exists() else b""):
        if one.loss is not None and math.isfinite(one.loss):
            found[one.stage][one.done] = one.loss
    return {
        stage: sorted(points.items())[:: -(-len(points) // most)] for stage, points in found.items()
    }


def judge_figures(judge: Path) -> dict[str, float]:
    """What is known of a judge: its data, and its agreement with raters it never saw.

    Figures that are no finite numbers are left out and counted as `not_finite`.
    """
    return _finite(_numbers(judge / "reward.json", "judge_"))


def who_judged(figures: Mapping[str, float], predecessor: str) -> str:
    """Which of two reward models judged and by what votes; empty where there was one alone.

    Args:
        figures: Of the judge, see `predecessor_judges`.
        predecessor: The one that was published before.

    """
    before, votes = figures.get("judge_predecessor_agreed"), figures.get("judge_compared")
    if before is None or not votes:
        return ""
    own = figures.get("judge_compared_agreed")
    both = [
        ("the job's own", "none" if own is None else f"{own:.0f}"),
        (predecessor, f"{before:.0f}"),
    ]
    (judge, agreed), (other, less) = reversed(both) if predecessor_judges(figures) else both
    return (
        f"judged by {judge}, which agrees with {agreed} of {votes:.0f} votes that neither learned "
        f"from, {other} with {less}"
    )


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


def stages(method: str, *, judged: bool, harness: bool = False) -> tuple[Stage, ...]:
    """What a trainer does for a method. The judge is trained where it has data enough."""
    if method == "reward":
        return ("reward",)
    drift: tuple[Stage, ...] = ("drift", "harness") if harness else ("drift",)
    judge: tuple[Stage, ...] = ("reward",) if judged and method != "sft" else ()
    return (*judge, *training_stages(method), "evaluate", "quality", *drift, "fingerprint")


def training_stages(method: str) -> tuple[Stage, ...]:
    """What makes a method's adapter, without measuring it."""
    objective: tuple[Stage, ...] = ("proxy",) if method in ONLINE else ()
    return (*objective, cast("Stage", method))


def _moved(row: Mapping[str, Any]) -> float:
    """How far the judge's score of an answer moved; NaN counts as none."""
    moved = abs(row.get("candidate_score", 0.0) - row.get("parent_score", 0.0))
    return moved if math.isfinite(moved) else 0.0


def _with_names(candidate: Candidate) -> GateResult:
    """The candidate's gate with what failed named: cases, probes, the segment and its prompts."""
    lost = candidate.lost
    named = {
        "cases": _listed("failed again", _of_kind(lost, "cases"), "(ratchet cases show)"),
        "safety": _listed("fails", _of_kind(lost, "safety")),
        "capability_task": _listed("fell", _fallen(candidate.figures)),
    }
    if who := who_judged(candidate.figures, candidate.predecessor):
        named["judge"] = f"; {who}"
    if asked := candidate.figures.get("ai_exam_asked"):
        agreed, decided = (candidate.figures[f"ai_exam_{what}"] for what in ("agreed", "decided"))
        named["ai_judge"] = (
            f"; it agrees with people in {agreed:.0f} of {decided:.0f} held-out choices that it "
            f"decides, of {asked:.0f}"
        )
    if candidate.segments:
        worst = candidate.segments[0]
        shown = ", ".join(f'"{case[:SHOWN_CHARACTERS]}"' for case in worst.cases)
        named["segments"] = (
            f"; {worst.name} won {worst.win_rate:.0%} of {worst.prompts} prompts"
            + (f", lost most on {shown}" if shown else "")
        )
    checks = tuple(
        check.model_copy(update={"detail": check.detail + named.get(check.name, "")})
        for check in candidate.gate.checks
    )
    return candidate.gate.model_copy(update={"checks": checks})


def _fallen(figures: Mapping[str, float]) -> list[str]:
    """Tasks by how sure their fall is, each with its change and 95 % interval."""
    names = sorted(tasks_of(figures), key=lambda task: -figures[f"capability_{task}_fall"])
    found: list[str] = []
    for task in names:
        change, low, high = (
            figures[f"capability_{task}_{what}"] for what in ("change", "change_low", "change_high")
        )
        if change < 0:
            found.append(f"{task} {change:+.0%} [{low:+.0%}, {high:+.0%}]")
    return found


def _of_kind(lost: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    names = (str(row.get("case_id") or row["name"]) for row in lost if row["kind"] == kind)
    return list(dict.fromkeys(names))


def _listed(verb: str, names: Sequence[str], where: str = "") -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN_CASES} more" if len(names) > SHOWN_CASES else ""
    return f"; {verb}: {', '.join(names[:SHOWN_CASES])}{more}{f' {where}' if where else ''}"


def _finite_rows(path: Path) -> list[dict[str, Any]]:
    """Answers whose scores are finite; a diverged judge tells nothing of a segment."""
    return [
        row
        for row in read_rows(path)
        if all(math.isfinite(row.get(f"{arm}_score", 0.0)) for arm in ARMS)
    ]


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
