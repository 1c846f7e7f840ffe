"""Metrics of one's own: plain functions that packages declare in the group `ratchet.metrics`.

A metric is called as `metric(messages, answer, reference)`, with the prompt's turns and the
preferred answer where one is known, and returns a number in [0, 1]; the figure is the mean. One
named `factuality` takes the place of the built-in check of facts.
"""

# pyright: strict
from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from statistics import fmean
from typing import Any

GROUP = "ratchet.metrics"

TAKEN = frozenset(
    {"perplexity", "length", "stop_share", "repetition", "safety", "score", "win_rate", "variety"}
)
"""Names of the evaluation's own figures, by some of which the gate decides."""

CustomMetric = Callable[[Sequence[Mapping[str, Any]], str, "str | None"], float]
Judged = tuple[Sequence[Mapping[str, Any]], str, "str | None"]
"""Prompt, answer, reference."""


def custom_means(
    rows: Sequence[Judged],
    metrics: Iterable[EntryPoint] | None = None,
    *,
    note: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], int]:
    """Each installed metric's mean over the rows, and how many metrics failed.

    A metric that cannot be loaded, raises, leaves [0, 1] or has a name in `TAKEN` has no figure; why is on stderr, which
    is the trainer's log. `note` is called before each row, as a metric may ask a slow service.
    """
    means: dict[str, float] = {}
    failed = 0
    for point in entry_points(group=GROUP) if metrics is None else metrics:
        try:
            if point.name in TAKEN:
                raise ValueError("the evaluation has a figure of this name; take another")
            metric: CustomMetric = point.load()
            values: list[float] = []
            for row in rows:
                note()
                values.append(float(metric(*row)))
            if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
                raise ValueError("a value is not in [0, 1]")
        except Exception as error:  # noqa: BLE001
            # The function is the user's: whatever it raises must not end the evaluation.
            failed += 1
            print(f"metric {point.name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if values:
            means[point.name] = fmean(values)
    return means, failed
