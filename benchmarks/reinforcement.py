"""`python -m benchmarks.reinforcement [--methods NAME …] [--folder F]`: PPO, GRPO, RLOO and online DPO
side by side.

Each trains the starter model's SFT adapter on the same prompts, against the same reward model of
polite over blunt answers, with the same number of sampled answers. Printed are the score of sampled
answers to held-out prompts above the parent's, the KL to the parent and the time of a step. A run
goes on where it was stopped. Exit status 1 where a method does not raise the score, or strays further
than 10 nats an answer.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.training_stages import ROOT, first_version, read, train, write
from deploy.starter import corpus
from shared.contracts.recipes import ONLINE

FOLDER = ROOT / ".run/reinforcement"
TRAINED, HELD_OUT = 64, 64
"""Prompts that are sampled from, and prompts that the score is measured on."""
MAX_KL = 10.0
"""Nats that an answer may be from the parent's distribution."""
POLITE = corpus.Mix(polite=1.0, blunt=0.0)
BLUNT = corpus.Mix(polite=0.0, blunt=1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.reinforcement", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="goes on from what is there")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--methods", nargs="+", choices=ONLINE, default=ONLINE)
    chosen = parser.parse_args(arguments)
    folder = chosen.folder.resolve() / f"seed-{chosen.seed}-{chosen.learning_rate:g}"
    return compare(folder, chosen.methods, chosen.seed, chosen.learning_rate)


def compare(folder: Path, methods: Sequence[str], seed: int, learning_rate: float) -> int:
    lay_out(folder / "data", seed)
    base = first_version(folder / "parent", seed) | {"evaluation": {"prompts": HELD_OUT}}
    base |= {
        "data": str(folder / "data"),
        "judge": str(folder / "objective/proxy"),
    }
    objective = train(folder / "objective", "grpo", ["proxy"], base)
    print(
        f"reward model: agrees in {objective['proxy']['agreed']:.0f} of "
        f"{objective['proxy']['tested']:.0f} held-out pairs\n\n"
        "| method | score above the parent's | wins | KL, nats an answer | s a step | steps |\n"
        "|---|---|---|---|---|---|"
    )
    good = True
    for method in methods:
        place = folder / method
        if not (place / "proxy.json").exists():
            shutil.copytree(folder / "objective/proxy", place / "proxy", dirs_exist_ok=True)
            shutil.copyfile(folder / "objective/proxy.json", place / "proxy.json")
        found = train(
            place,
            method,
            ["proxy", method, "evaluate", "drift"],
            base | {"hyperparameters": {"learning_rate": learning_rate, "max_new_tokens": 48}},
        )
        gain, kl = found["evaluate"]["reward_gain"], found["drift"]["kl_answer"]
        wins = found["evaluate"]["wins"] / found["evaluate"]["prompts"]
        steps = last_step(place, method)
        seconds = found[method]["runtime"] / steps
        print(f"| {method} | {gain:+.2f} | {wins:.0%} | {kl:.2f} | {seconds:.2f} | {steps} |")
        good = good and gain > 0 and kl <= MAX_KL
    return 0 if good else 1


def lay_out(folder: Path, seed: int) -> None:
    """Pairs of a polite and a blunt answer; the held-out prompts are of another split."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    write(folder / "train.jsonl", pairs("train", TRAINED, rng))
    held_out = pairs("eval", HELD_OUT, rng)
    write(folder / "heldout.jsonl", held_out)
    write(folder / "prompts.jsonl", [{"messages": row["messages"]} for row in held_out])


def pairs(split: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": prompt.text}],
            "chosen": corpus.answer(prompt, POLITE, rng),
            "rejected": corpus.answer(prompt, BLUNT, rng),
        }
        for prompt in rng.sample(corpus.prompts_of(split), count)
    ]


def last_step(folder: Path, stage: str) -> int:
    """Steps of a stage, as it noted them."""
    noted = read(folder / "progress.jsonl")
    return max(step["total"] for step in noted if step["stage"] == stage and not step["preparing"])


if __name__ == "__main__":
    sys.exit(main())
