"""Evaluation report: one HTML page without outside assets, and the same as JSON. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from services.training.charts import curve, intervals, paired_bars, shares
from services.training.dataset_manifest import Dataset
from services.training.dataset_rows import LEFT_OUT
from services.training.measures.segments import SegmentWins
from services.training.measures.tasks import tasks_of
from shared.contracts.events.versions import GateResult

MAX_SHOWN = 300
"""Characters of a sample's text that are shown."""
MAX_ROWS = 20
"""Rows left out, and items lost, that are shown one by one."""
INTERVALS = ("win_rate", "first_win_rate", "judge_accuracy", "ai_win_rate", "ai_agreement")
"""Rates that are drawn with their bounds; `first_` is against the chain's first version."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .15rem .6rem; text-align: left;
border-bottom: 1px solid #ccc; vertical-align: top } .no { color: #a40000 } .yes { color: #006b3c }
svg { max-width: 100% } blockquote { margin: .8rem 0 0; border-left: 3px solid #999; padding-left: .6rem }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #e6e6e6 }
.no { color: #ff8a80 } .yes { color: #7bd88f } svg text { fill: #e6e6e6 } }
"""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found of one candidate."""

    title: str
    """The version's name, or the job's where it made none."""
    method: str
    parent: str
    gate: GateResult
    figures: Mapping[str, float]
    dataset: Dataset
    parameters: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    lost: Sequence[Mapping[str, Any]] = ()
    """What the parent got right and the candidate wrong: failure cases, tasks, questions."""
    judge: str = ""
    """Which reward model judged, and why; empty where there was one alone."""
    segments: Sequence[SegmentWins] = ()
    diagnosis: Sequence[str] = ()
    """Of a refused candidate: what happened, and what to do about it."""
    attempts: Sequence[Mapping[str, Any]] = ()
    """What the job tried: by whom it was chosen, parameters, how far short and by which checks."""
    losses: Mapping[str, Sequence[tuple[int, float]]] = field(
        default_factory=dict[str, Sequence[tuple[int, float]]]
    )
    """By stage, the loss at each step that was noted."""

    def data(self) -> dict[str, Any]:
        """The report as JSON."""
        manifest = self.dataset.manifest
        return {
            "title": self.title,
            "method": self.method,
            "parent": self.parent,
            "gate": self.gate.model_dump(mode="json"),
            "diagnosis": list(self.diagnosis),
            "attempts": [dict(one) for one in self.attempts],
            "judge": self.judge,
            "figures": dict(self.figures),
            "dataset": {
                "dataset_id": manifest.dataset_id,
                "sha256": manifest.sha256,
                "card": manifest.card,
                "refused": manifest.refused,
                "left_out": [str(row) for row in self.dataset.left_out],
            },
            "parameters": dict(self.parameters),
            "losses": {stage: list(points) for stage, points in self.losses.items()},
            "samples": [dict(row) for row in self.samples],
            "lost": [dict(row) for row in self.lost],
            "segments": [asdict(one) for one in self.segments],
        }

    def html(self) -> str:
        """The report as one page."""
        title = escape(self.title)
        return "\n".join(
            [
                "<!doctype html>",
                f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<style>{STYLE}</style></head><body>",
                f"<h1>{title}</h1>",
                f"<p>{escape(self.method)} from {escape(self.parent or 'the base')}.</p>",
                *self._diagnosis(),
                *self._gate(),
                *self._attempts(),
                *self._charts(),
                *self._segments(),
                *self._tasks(),
                *self._lost(),
                *self._samples(),
                *self._training(),
                *self._data(),
                "<h2>Parameters</h2>",
                table(("name", "value"), sorted(self.parameters.items())),
                "<h2>All figures</h2>",
                table(("figure", "value"), sorted(self.figures.items())),
                "</body></html>\n",
            ]
        )

    def _diagnosis(self) -> Iterable[str]:
        if self.diagnosis:
            items = "".join(f"<li>{escape(text)}</li>" for text in self.diagnosis)
            yield f"<h2>What happened, and what to do</h2><ul>{items}</ul>"

    def _gate(self) -> Iterable[str]:
        word = "passed" if self.gate.passed else "refused"
        yield f"<h2>Gate: {word}</h2>"
        if self.gate.overridden_by:
            by, why = escape(self.gate.overridden_by), escape(self.gate.override_reason)
            yield f"<p>overridden by {by}: {why}</p>"
        rows = [
            (check.name, check.value, check.limit, check.passed, check.detail)
            for check in self.gate.checks
        ]
        yield table(("check", "value", "limit", "passed", "what"), rows)

    def _attempts(self) -> Iterable[str]:
        if len(self.attempts) < 2:
            return
        yield "<h2>Attempts</h2>"
        names = list(self.attempts[0]["parameters"])
        rows = [
            (
                one["attempt"],
                one["chosen_by"],
                *(one["parameters"][name] for name in names),
                one["shortfall"],
                ", ".join(one["failed"]) or "none",
            )
            for one in self.attempts
        ]
        yield table(("attempt", "chosen by", *names, "short by", "failed"), rows)

    def _charts(self) -> Iterable[str]:
        figures = self.figures
        yield "<h2>Against the parent</h2>"
        if self.judge:
            yield f"<p>It was {escape(self.judge)}.</p>"
        outcomes = [(name, figures.get(name, 0.0)) for name in ("wins", "ties", "losses")]
        if sum(value for _, value in outcomes):
            yield shares("the judge's choice on held-out prompts", outcomes)
        spans = [
            (name, figures[f"{name}_low"], figures[name], figures[f"{name}_high"])
            for name in INTERVALS
            if {name, f"{name}_low", f"{name}_high"} <= figures.keys()
        ]
        if spans:
            yield intervals("95 % intervals; the line is one half", spans, mark=0.5)
        measured = sorted(
            name.removeprefix("candidate_") for name in figures if name.startswith("candidate_")
        )
        names = ["score", *(name for name in measured if name != "score")]
        pairs = [
            (name, figures[f"parent_{name}"], figures[f"candidate_{name}"])
            for name in names
            if {f"parent_{name}", f"candidate_{name}"} <= figures.keys()
        ]
        if "capability_parent" in figures:
            pairs.append(
                ("general tasks", figures["capability_parent"], figures["capability_candidate"])
            )
        if pairs:
            yield paired_bars("parent (grey) and candidate (blue)", pairs)

    def _segments(self) -> Iterable[str]:
        if not self.segments:
            return
        yield "<h2>By segment</h2>"
        spans = [(one.name, one.low, one.win_rate, one.high) for one in self.segments[:MAX_ROWS]]
        yield intervals("win rate, simultaneous 99 % bounds; the line is one half", spans, mark=0.5)
        rows = [
            (one.name, one.prompts, one.win_rate, one.gap, one.gap_low, one.gap_high)
            for one in self.segments[:MAX_ROWS]
        ]
        yield table(("segment", "prompts", "win rate", "gap to others", "low", "high"), rows)

    def _tasks(self) -> Iterable[str]:
        figures, tasks = self.figures, tasks_of(self.figures)
        if not tasks:
            return
        yield "<h2>General tasks</h2>"
        columns = ("items", "parent", "candidate", "change", "change_low", "change_high")
        rows = [
            (task, *(figures.get(f"capability_{task}_{name}") for name in columns))
            for task in tasks
        ]
        yield table(("task", *columns), rows)

    def _lost(self) -> Iterable[str]:
        if self.lost:
            yield "<h2>Lost: the parent gets it right, the candidate wrong</h2>"
            rows = [
                (
                    row["kind"],
                    row.get("case_id") or row["name"],
                    _last(row),
                    row["good"],
                    row["bad"],
                )
                for row in self.lost[:MAX_ROWS]
            ]
            yield table(("kind", "which", "prompt", "right", "wrong"), rows)

    def _samples(self) -> Iterable[str]:
        if self.samples:
            yield "<h2>Answers that moved most</h2>"
        for sample in self.samples:
            yield f"<blockquote>{_shown(_last(sample))}</blockquote>"
            rows = [
                (arm, sample.get(f"{arm}_score"), _clip(str(sample[arm])))
                for arm in ("first", "parent", "candidate")
                if arm in sample
            ]
            yield table(("arm", "score", "answer"), rows)

    def _training(self) -> Iterable[str]:
        drawn = {stage: points for stage, points in self.losses.items() if len(points) > 1}
        if drawn:
            yield "<h2>Training</h2>"
        for stage, points in drawn.items():
            yield curve(f"loss of {stage} by step", points)

    def _data(self) -> Iterable[str]:
        manifest, left_out = self.dataset.manifest, self.dataset.left_out
        yield f"<h2>Data</h2><p>Dataset {escape(manifest.dataset_id)}, SHA-256 {manifest.sha256}.</p>"
        counts = [
            (name, ", ".join(f"{key} {count}" for key, count in tally.items()))
            for name, tally in manifest.card.items()
        ]
        refused = ", ".join(f"{name} {count}" for name, count in manifest.refused.items())
        yield table(("what", "counts"), [*counts, ("left out", refused or "none")])
        if left_out:
            shown = "".join(f"<li>{_shown(str(row))}</li>" for row in left_out[:MAX_ROWS])
            more = len(left_out) - MAX_ROWS
            rest = f"<p>and {more} more, in the dataset's {LEFT_OUT}</p>" if more > 0 else ""
            yield f"<ul>{shown}</ul>{rest}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; every cell is escaped."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f'<td class="{"yes" if value else "no"}">{"yes" if value else "no"}</td>'
    if value is None:
        return "<td>no data</td>"
    text = f"{value:.4g}" if isinstance(value, float) else _clip(str(value))
    return f"<td>{escape(text)}</td>"


def _last(row: Mapping[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def _shown(text: str) -> str:
    return escape(_clip(text))


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"
