"""Judge an exported rollout again with another author's statistics.

`ratchet rollout export ROLLOUT --out slices.csv`, then, in an environment of its own,
`pip install sequential-analysis==0.4.0` (AGPL; Ratchet itself does not use it) and
`python benchmarks/check_slices.py slices.csv [--alpha 0.001] [--margin 1.5]`. For each relative
criterion of a rate it prints the look at which `RateRatioTest` rejects "at most margin times
stable's rate", and its evidence at the end. 1 where no criterion is rejected.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CRITERIA = (
    ("errors", "requests", "failures"),
    ("slow_ratio", "requests", "slow"),
    ("stalls", "streams", "stalls"),
)


def units(rows: Sequence[dict[str, str]], whole: str, part: str) -> Iterator[tuple[int, Any]]:
    """One unit for each look and arm that did something: arm 1 is the candidate."""
    for row in rows:
        exposure = float(row[whole])
        if exposure > 0 and not row["segment"] and int(row["weight"]) < 10_000:
            arm = int(row["arm"] == "candidate")
            count = round(float(row[part]))
            yield int(row["look"]), {"arm": arm, "count": count, "exposure": exposure}


def rejected_at(
    rows: Sequence[dict[str, str]], whole: str, part: str, *, alpha: float, margin: float
) -> tuple[int | None, float]:
    """The look at which the test rejects, or None, and its log evidence at the end."""
    rates: Any = importlib.import_module("sequential_analysis.procedures.rates")
    test = rates.RateRatioTest(alpha, rho0=margin, alternative="greater", grid=0)
    state, look, log_e = test.initial_state(), None, 0.0
    for at, unit in units(rows, whole, part):
        state, output = test.step(state, unit)
        log_e = output.log_e_value
        if look is None and log_e >= math.log(1 / alpha):
            look = at
    return look, log_e


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a criterion."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--alpha", type=float, default=0.001, help="of one criterion")
    parser.add_argument("--margin", type=float, default=1.5)
    options = parser.parse_args(arguments)
    with options.file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = False
    for name, whole, part in CRITERIA:
        look, log_e = rejected_at(rows, whole, part, alpha=options.alpha, margin=options.margin)
        found = found or look is not None
        verdict = "kept" if look is None else f"broken, first at look {look}"
        print(f"{name}: {verdict} (odds {math.exp(min(log_e, 99)):.3g} of {1 / options.alpha:.0f})")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
