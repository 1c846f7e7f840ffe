"""`python -m benchmarks.scoring [--folder F]`: answers scored one by one and in a batch.

The process behind `POST /v1/score` scores the same answers by a reward model of the starter model: each
in a request of its own, and all in one. Printed are its CPU milliseconds an answer, by one thread, and how
many times fewer the batch takes. The service's part of a request comes on top of each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reinforcement import lay_out
from benchmarks.training_stages import ML_PYTHON, ROOT, read, starter, train
from shared.cpu_environment import CPU_ENVIRONMENT

FOLDER = ROOT / ".run/scoring"
ANSWERS, ROUNDS = 128, 5
MAX_LENGTH = 512
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scoring", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="goes on from what is there")
    folder = parser.parse_args(arguments).folder.resolve()
    lay_out(folder / "data", seed=1)
    train(folder / "model", "grpo", ["proxy"], {"data": str(folder / "data"), "seed": 1})
    found = measured(folder)
    single, batch = (statistics.median(found[name]) for name in ("single", "batch"))
    ratios = [one / whole for one, whole in zip(found["single"], found["batch"], strict=True)]
    print(
        f"{ANSWERS} answers, medians of {ROUNDS} rounds\n\n"
        "| CPU ms an answer, one by one | CPU ms an answer, one batch | ratio (of each round) |\n"
        "|---|---|---|\n"
        f"| {1000 * single / ANSWERS:.2f} | {1000 * batch / ANSWERS:.2f} "
        f"| {single / batch:.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
    )
    return 0


def measured(folder: Path) -> dict[str, list[float]]:
    """CPU seconds that all answers take, by round, after one that does not count."""
    answers = [
        {"messages": pair["messages"], "completion": pair[side]}
        for pair in read(folder / "data/train.jsonl")
        for side in ("chosen", "rejected")
    ][:ANSWERS]
    ways = {"single": [[answer] for answer in answers], "batch": [answers]}
    found: dict[str, list[float]] = {name: [] for name in ways}
    scorer = ScoringProcess(starter()["model"], folder / "model/proxy/adapter")
    for _ in range(1 + ROUNDS):
        for name, requests in ways.items():
            before = scorer.cpu_s()
            for rows in requests:
                scorer.score(rows)
            found[name].append(scorer.cpu_s() - before)
    scorer.close()
    return {name: seconds[1:] for name, seconds in found.items()}


class ScoringProcess:
    """The scorer's process, as the inference service starts it."""

    def __init__(self, base: str, adapter: Path) -> None:
        self._model = {"base": base, "revision": "main", "adapter": str(adapter)}
        self._process = subprocess.Popen(
            [ML_PYTHON, "-m", "services.inference.scoring"],
            cwd=ROOT,
            env={**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def score(self, rows: Sequence[dict[str, Any]]) -> list[float]:
        """Scores of one request."""
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        asked.write(json.dumps({**self._model, "max_length": MAX_LENGTH, "rows": rows}) + "\n")
        asked.flush()
        scores = json.loads(answered.readline())["scores"]
        assert len(scores) == len(rows)
        return scores

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS_A_SECOND

    def close(self) -> None:
        """End it by the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
