"""`python -m benchmarks.learning [--seed S] [--ablation NAME] [--folder F]`: the loop learns a taste.

Three iterations, v1.0 to v1.3, of the trainer's own stages with its defaults. Simulated raters with
a hidden taste, whose signs the seed draws, vote on pairs of the newest version's answers: at most
300 votes an iteration, a fifth of raters and prompts set apart for the judge. Satisfaction and win
rates are measured by the taste itself on prompts that nobody trained on, beside the published
trajectory; the scale's offset is fitted so that v1.0 scores 3.5 and is on disk before v1.1 exists.

Ablations: `noisy` flips a fifth of the training votes, `random` half and `inverted` all of them,
`length` has raters who like length alone, `thumbs` trains by KTO on single answers. Votes of the
judge's raters stay true: `random` and `inverted` must not pass the gate's win rate.

A run goes on where it was stopped. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hidden_taste import HiddenTaste, prefers
from benchmarks.training_stages import ROOT, first_version, read, train, write
from deploy.starter import corpus
from shared.intervals import wilson

FOLDER = ROOT / ".run/learning"
PUBLISHED_SATISFACTION = (3.5, 3.8, 4.0, 4.2)
PUBLISHED_WINS = (0.58, 0.62, 0.65)
ITERATIONS = 3
VOTES = 300
ASKED, JUDGED = 320, 150
"""Prompts whose two answers are voted on an iteration, and prompts of the final measure."""
JUDGE_PROMPTS = 0.2
HELD_OUT = 0.1
MAX_TOKENS = 64
SHARPNESS = 3.0
FIRST_SCORE = 3.5
POINT = 0.7
"""Points of the five-point scale that one unit of the taste is worth."""
GATE_WIN_RATE = 0.55
FLIPPED = {"none": 0.0, "noisy": 0.2, "random": 0.5, "inverted": 1.0, "length": 0.0, "thumbs": 0.0}
MUST_FAIL = frozenset({"random", "inverted"})


@dataclass(frozen=True)
class LearntVersion:
    """A version with the figures of its own evaluation and of the taste's."""

    name: str
    figures: Mapping[str, float]
    satisfaction: float
    wins_first: float
    wins_parent: float
    wins_parent_low: float

    @property
    def passes(self) -> bool:
        """Whether the gate's win rate by the run's own judge lets it through."""
        judged = sum(self.figures[name] for name in ("wins", "ties", "losses"))
        won = self.figures["wins"] + self.figures["ties"] / 2
        return won / judged >= GATE_WIN_RATE and wilson(won, judged)[0] >= 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.learning", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="goes on from what is there")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ablation", choices=FLIPPED, default="none")
    chosen = parser.parse_args(arguments)
    folder = chosen.folder.resolve() / f"{chosen.ablation}-{chosen.seed}"
    versions = learn(folder, chosen.seed, chosen.ablation)
    return report(versions, chosen.ablation)


def learn(folder: Path, seed: int, ablation: str) -> list[LearntVersion]:
    """Run the iterations, each on the one before; those that are done are read back."""
    taste = HiddenTaste.drawn(seed)
    job = first_version(folder / "v1.0", seed)
    prompts = random.Random(seed).sample(corpus.prompts_of("eval"), JUDGED)
    asked = random.Random(seed).sample(corpus.prompts_of("serve"), ASKED)
    first, offset, versions = str(job["parent_adapter"]), 0.0, list[LearntVersion]()
    parent_answers = first_answers = list[str]()
    for number in range(1, ITERATIONS + 1):
        place = folder / f"v1.{number}"
        samples = sampled(folder / f"samples-{number}", job, asked)
        lay_out(place / "data", votes(samples, taste, ablation, f"{seed}/{number}"), prompts)
        method = "kto" if ablation == "thumbs" else "dpo"
        stages = ["reward", method, "evaluate", "drift"]
        job |= {"data": str(place / "data"), "judge": str(place / "judge")}
        if not first_answers:
            first_answers = parent_answers = answers_of(folder / "measure-0", job, first, prompts)
            offset = scale(folder, taste, first_answers)
        found = train(place, method, stages, job, judge=place / "judge")
        adapter = str(place / "adapter")
        answers = answers_of(folder / f"measure-{number}", job, adapter, prompts)
        versions.append(
            LearntVersion(
                f"v1.{number}",
                {**found["evaluate"], **found["drift"], **found["reward"]},
                satisfaction(taste, answers, offset),
                win_rate(taste, answers, first_answers)[0],
                *win_rate(taste, answers, parent_answers),
            )
        )
        parent_answers = answers
        job |= {"parent_adapter": adapter}
    return versions


def sampled(
    folder: Path, job: Mapping[str, Any], prompts: Sequence[corpus.Prompt]
) -> list[tuple[corpus.Prompt, tuple[str, str]]]:
    """Two different answers of the newest version to each prompt, where it gives two."""
    answers = answers_of(folder, job, str(job["parent_adapter"]), [*prompts, *prompts])
    both = zip(prompts, answers[: len(prompts)], answers[len(prompts) :], strict=True)
    return [(prompt, (one, other)) for prompt, one, other in both if one != other]


def answers_of(
    folder: Path, job: Mapping[str, Any], adapter: str, prompts: Sequence[corpus.Prompt]
) -> list[str]:
    """What an adapter answers, one answer a prompt, by the trainer's own evaluation."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write(data / "prompts.jsonl", [{"messages": turn(prompt)} for prompt in prompts])
    (folder / "adapter").unlink(missing_ok=True)
    (folder / "adapter").symlink_to(adapter)
    settings = {"prompts": len(prompts), "max_new_tokens": MAX_TOKENS}
    train(
        folder,
        "dpo",
        ["evaluate"],
        {**job, "data": str(data), "judge": "", "parent_adapter": "", "evaluation": settings},
    )
    return [row["candidate"] for row in read(folder / "answers.jsonl")]


def votes(
    samples: Sequence[tuple[corpus.Prompt, tuple[str, str]]],
    taste: HiddenTaste,
    ablation: str,
    seed: str,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each file of a dataset: raters and prompts of the judge are of no other file."""
    chance = random.Random(seed)
    files: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": [], "judge": []}
    for prompt, answers in samples[:VOTES]:
        side = chance.random()
        name = "judge" if side < JUDGE_PROMPTS else "heldout" if side > 1 - HELD_OUT else "train"
        margin = taste.utility(answers[0]) - taste.utility(answers[1])
        if ablation == "length" and name != "judge":
            margin = (len(answers[0]) - len(answers[1])) / 50
        first = prefers(margin, SHARPNESS, chance)
        if name == "train" and chance.random() < FLIPPED[ablation]:
            first = not first
        chosen, rejected = answers if first else answers[::-1]
        files[name].append({"messages": turn(prompt), "chosen": chosen, "rejected": rejected})
    if ablation == "thumbs":
        files["train"] = [thumb(row, chance) for row in files["train"]]
    return files


def thumb(pair: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """One answer of a pair with its thumb."""
    good = chance.random() < 0.5
    answer = pair["chosen" if good else "rejected"]
    return {"messages": pair["messages"], "answer": answer, "label": good}


def lay_out(
    folder: Path, files: Mapping[str, list[dict[str, Any]]], prompts: Sequence[corpus.Prompt]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write(folder / f"{name}.jsonl", rows)
    write(folder / "prompts.jsonl", [{"messages": turn(prompt)} for prompt in prompts])


def turn(prompt: corpus.Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt.text}]


def scale(folder: Path, taste: HiddenTaste, answers: Sequence[str]) -> float:
    """The offset by which v1.0 scores 3.5; once written it is never fitted again."""
    path = folder / "scale.json"
    if not path.exists():
        offset = 0.0
        for _ in range(50):  # scores are clipped, so that the mean is not linear in the offset
            offset += FIRST_SCORE - satisfaction(taste, answers, offset)
        path.write_text(json.dumps({"offset": offset, "point": POINT}))
    return float(json.loads(path.read_text())["offset"])


def satisfaction(taste: HiddenTaste, answers: Sequence[str], offset: float) -> float:
    """Mean score of one to five."""
    return statistics.fmean(
        min(5.0, max(1.0, offset + POINT * taste.utility(answer))) for answer in answers
    )


def win_rate(
    taste: HiddenTaste, answers: Sequence[str], others: Sequence[str]
) -> tuple[float, float]:
    """Share of prompts on which the taste prefers the first answers, ties half; 95 % lower bound."""
    gaps = [taste.utility(a) - taste.utility(b) for a, b in zip(answers, others, strict=True)]
    won = sum(0.5 if gap == 0 else float(gap > 0) for gap in gaps)
    return won / len(gaps), wilson(won, len(gaps))[0]


def report(versions: Sequence[LearntVersion], ablation: str) -> int:
    """Print the table; 1 where a goal is missed."""
    print(
        "| version | satisfaction | published | wins v1.0 | published | wins parent (low) "
        "| judge agrees | KL | general tasks | gate's win rate |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    print(f"| v1.0 | {FIRST_SCORE:.2f} | {PUBLISHED_SATISFACTION[0]} | – | – | – | – | – | – | – |")
    rows = zip(versions, PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=True)
    for one, satisfied, wins in rows:
        figures = one.figures
        agreed = figures["judge_agreed"] / max(1.0, figures["judge_tested"])
        tasks = f"{figures['capability_parent']:.0%} to {figures['capability_candidate']:.0%}"
        print(
            f"| {one.name} | {one.satisfaction:.2f} | {satisfied} | {one.wins_first:.0%} | {wins:.0%} "
            f"| {one.wins_parent:.0%} ({one.wins_parent_low:.0%}) | {agreed:.0%} "
            f"| {figures['kl']:.2f} | {tasks} | {'passes' if one.passes else 'refused'} |"
        )
    missed = misses(versions, ablation)
    print("\n".join(f"missed: {text}" for text in missed) or "all goals met")
    return 1 if missed else 0


def misses(versions: Sequence[LearntVersion], ablation: str) -> list[str]:
    """Goals of this run that were missed."""
    if ablation in MUST_FAIL:
        return [f"{one.name} passed the gate" for one in versions if one.passes]
    first, last = FIRST_SCORE, versions[-1].satisfaction
    if ablation != "none":
        return [] if last > first or ablation == "length" else [f"satisfaction fell to {last:.2f}"]
    rows = zip(versions, PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=True)
    return [
        text
        for one, satisfied, wins in rows
        for text, met in (
            (f"{one.name}: satisfaction {satisfied}", one.satisfaction >= satisfied),
            (f"{one.name}: wins of v1.0 {wins:.0%}", one.wins_first >= wins),
            (f"{one.name}: beats its parent", one.wins_parent_low > 0.5),
        )
        if not met
    ]


if __name__ == "__main__":
    sys.exit(main())
