"""`python -m benchmarks.generation [--folder F]`: answers by transformers and by vLLM, one thread.

An adapter of the starter model answers the starter's prompts as an evaluation has it. The seconds are of
the process that writes them, its imports, the model's load and the engine's start included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning_votes import turns
from benchmarks.training_stages import ROOT, demonstration, sample_answers, starter, train, write
from deploy.starter import corpus

FOLDER = ROOT / ".run/generation"
COUNTS = (32, 256, 1024)
WRITERS = ("transformers", "vllm")
ROWS = 64
"""Demonstrations that the adapter learns from: it only has to differ from the base."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.generation", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="its adapter is used again")
    folder = parser.parse_args(arguments).folder.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    adapter = trained(folder / "first")
    print(f"| answers | {' | '.join(f'{one}, s' for one in WRITERS)} |\n|---|---|---|")
    for count in COUNTS:
        took = [f"{seconds(folder / one, adapter, one, count):.1f}" for one in WRITERS]
        print(f"| {count} | {' | '.join(took)} |", flush=True)
    return 0


def trained(folder: Path) -> str:
    """The folder of an adapter of the starter model."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    lines = Path(starter()["demonstrations"]).read_text(encoding="utf-8").splitlines()
    write(data / "train.jsonl", [demonstration(json.loads(line)) for line in lines[:ROWS]])
    train(folder, "sft", ["sft"], {"seed": 1, "data": str(data)})
    return str(folder / "adapter")


def seconds(folder: Path, adapter: str, writer: str, count: int) -> float:
    """How long so many answers take."""
    asked = random.Random(count).choices(corpus.prompts_of("eval"), k=count)
    began = time.monotonic()
    sample_answers(folder, adapter, turns(asked), generation={"engine": writer}, seed=1, threads=1)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
