"""SFT, then DPO from its adapter, on a base of a real size: seconds a step and memory.

    python -m benchmarks.base_size [--size 1.5b] [--rows 8] [--folder F]

The stages are those of a training job, in the trainer's process. The base has the shape of Qwen2 and
random weights, which cost the same and say nothing of what is learnt. A run goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_base import SHAPES
from benchmarks.reinforcement import last_step, pairs
from benchmarks.training_stages import ML_PYTHON, ROOT, run, starter, train, write

FOLDER = ROOT / ".run/base-size"
BATCH = 4
SETTINGS = {"batch_size": BATCH, "epochs": 2.0, "gradient_checkpointing": True}
DONE = "weights.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.base_size", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="goes on from what is there")
    parser.add_argument("--size", choices=SHAPES, default="1.5b")
    parser.add_argument("--rows", type=int, default=8)
    chosen = parser.parse_args(arguments)
    folder = chosen.folder.resolve() / chosen.size
    base = folder / "base"
    weights = base_of(base, chosen.size)
    data = lay_out(folder / "data", chosen.rows)
    job: dict[str, Any] = {"base": str(base), "data": str(data), "hyperparameters": SETTINGS}
    print(f"{weights / 1e9:.2f} billion weights, {weights * 4 / 2**30:.1f} GiB in float32\n")
    print("| stage | steps | s a step | loss | peak memory, GiB |")
    print("|---|---|---|---|---|", flush=True)
    for stage, parent in (("sft", None), ("dpo", folder / "sft/adapter")):
        begun = {"parent_adapter": str(parent)} if parent else {}
        found = train(folder / stage, stage, [stage], {"seed": 1} | job | begun)[stage]
        steps = last_step(folder / stage, stage)
        # Of all processes so far: each stage takes more than the one before.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(
            f"| {stage} | {steps} | {found['runtime'] / steps:.1f} | {found['loss']:.3f} | {peak:.1f} |",
            flush=True,
        )
    return 0


def base_of(folder: Path, size: str) -> int:
    """Make the base unless it is there; how many weights it has."""
    done = folder / DONE
    if not done.exists():
        command = [str(ML_PYTHON), "-m", "benchmarks.random_base", str(folder), size]
        said = run([*command, starter()["model"]], capture=True)
        done.write_text(said.splitlines()[-1], encoding="utf-8")
    return int(json.loads(done.read_text(encoding="utf-8")))


def lay_out(folder: Path, rows: int) -> Path:
    """Pairs, whose better answers are SFT's demonstrations too."""
    folder.mkdir(parents=True, exist_ok=True)
    write(
        folder / "train.jsonl",
        [row | {"answer": row["chosen"]} for row in pairs("train", rows, random.Random(1))],
    )
    return folder


if __name__ == "__main__":
    sys.exit(main())
