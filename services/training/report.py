"""Evaluation report in Markdown: figures, the gate's checks, sample answers. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.training.dataset import LEFT_OUT
from services.training.snapshot import Dataset
from shared.contracts.events.versions import GateResult

MAX_SHOWN = 300
"""Characters of a sample's text that are shown."""
MAX_ROWS = 20
"""Rows left out that are shown one by one."""


def render(
    version: str,
    *,
    parent: str,
    gate: GateResult,
    figures: Mapping[str, float],
    dataset: Dataset,
    parameters: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
) -> str:
    """The report in Markdown."""
    manifest, left_out = dataset.manifest, dataset.left_out
    lines = [f"# {version}", "", f"{manifest.method.value} from {parent or 'the base'}.", ""]
    lines.append(f"Gate: **{'passed' if gate.passed else 'refused'}**")
    if gate.overridden_by:
        lines.append(f"— overridden by {gate.overridden_by}: {gate.override_reason}")
    lines += ["", "| check | value | limit | passed | what |", "|---|---|---|---|---|"]
    lines += [
        f"| {check.name} | {_number(check.value)} | {_number(check.limit)} | "
        f"{'yes' if check.passed else 'no'} | {check.detail} |"
        for check in gate.checks
    ]
    lines += ["", "## Figures", "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {_number(figures[name])} |" for name in sorted(figures)]
    lines += ["", "## Data", "", f"Dataset {manifest.dataset_id}, SHA-256 {manifest.sha256}.", ""]
    for name, counts in manifest.card.items():
        lines.append(f"- {name}: {', '.join(f'{key} {n}' for key, n in counts.items())}")
    refused = ", ".join(f"{name} {count}" for name, count in manifest.refused.items())
    lines.append(f"- left out: {refused or 'none'}")
    lines += [f"  - {row}" for row in left_out[:MAX_ROWS]]
    if len(left_out) > MAX_ROWS:
        lines.append(f"  - and {len(left_out) - MAX_ROWS} more, in the dataset's {LEFT_OUT}")
    lines += ["", "## Parameters", ""]
    lines += [f"- {name}: {value}" for name, value in sorted(parameters.items())]
    if samples:
        lines += ["", "## Answers", ""]
    for sample in samples:
        lines += [
            f"> {_shown(sample['messages'][-1]['content'])}",
            "",
            f"- parent: {_shown(sample['parent'])}",
            f"- candidate: {_shown(sample['candidate'])}",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _number(value: float | None) -> str:
    return "no data" if value is None else f"{value:.4g}"


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…"
