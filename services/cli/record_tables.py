"""Tables that jobs and versions share: the gate's checks, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.output import print_table


def print_checks(checks: Sequence[Mapping[str, Any]]) -> None:
    """The gate's checks, those that failed first; nothing without any."""
    if checks:
        names = ("name", "passed", "value", "limit", "detail")
        rows = [[check.get(name) for name in names] for check in checks]
        rows.sort(key=lambda row: bool(row[1]))
        print_table("Gate", ("check", "passed", "value", "limit", "what"), rows)


def print_figures(figures: Mapping[str, float]) -> None:
    """Figures by name; nothing without any."""
    if figures:
        print_table("Figures", ("figure", "value"), sorted(figures.items()))
