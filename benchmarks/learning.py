"""`python -m benchmarks.learning [--seed S …] [--iterations N] [--ablation NAME …] [--folder F] [--report]`:
the loop learns a taste.

Three versions, v1.1 to v1.3, by the training service's own jobs with its shipped settings: snapshot,
judge, gate, one retry with adjusted parameters, publication. Simulated raters with a hidden taste,
whose signs the seed draws, vote in rounds on pairs of the served version's answers, at most 300 votes
a round; then a job is asked for, as the schedule would. A version counts where the gate released it,
and is served from then on. Where the gate refused, the parent stays, the votes stay on the log, and
the next round's are on the parent's answers again: the version then took two rounds' votes, which
the table says. After twice as many rounds as versions wanted a run ends. Once, 150 users leave a
thumb, which DPO does not train on: their prompts are the evaluation's.

Satisfaction and win rates are measured by the taste itself on prompts that no one trained on or
voted on, beside the published trajectory; the scale's offset is fitted so that v1.0 scores 3.5 and
is on disk before v1.1 exists.

Ablations: `no_sft` trains without the SFT term, `noisy` flips a fifth of the training votes,
`random` half and `inverted` all of them, `length` has raters who like length alone, `thumbs` trains
by KTO on single answers. In `capped` and `uncapped` one rater casts two fifths of the training
votes, all against the taste, in `colluders` five of the hundred raters do; `uncapped` has no cap on
one rater. `ai_judge` has the training votes cast by a judge that has the taste but loves length, and
drops what it finds equal; in `hybrid` it casts half of them. `newest` trains on the served version's answers alone, on-policy; without it each
version trains on all votes so far. `no_shorter` leaves out votes for the much shorter answer. Votes
of the judge's raters stay true: `random`, `inverted` and `length` must not pass the gate, and
`no_shorter` may.

A run goes on where it was stopped. All runs share v1.0, which has nothing of a taste, and all of a
seed what v1.0 answers. `learning.svg` in the folder plots
all seeds that have been run whole. `--report` trains nothing and prints the tables of what is in the
folder: each whole seed and each ablation, with their means. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from benchmarks.hidden_taste import HiddenTaste
from benchmarks.learning_plot import plot
from benchmarks.learning_report import (
    FIRST_SCORE,
    JUDGED,
    MUST_FAIL,
    LearntRound,
    Rate,
    misses,
    panels_of,
    pooled,
    released,
    served_table,
    table,
    with_mean,
)
from benchmarks.learning_service import MODEL, Feedback, JobResult, do_job
from benchmarks.learning_votes import (
    BEGIN,
    BY_AI,
    FLIPPED,
    ZEALOTS,
    Asked,
    SaidAnswer,
    thumbs,
    turns,
    votes,
)
from benchmarks.training_stages import ROOT, read, sample_answers, starter, write
from deploy.starter import corpus
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.intervals import TWO_SIDED_95, wilson

FOLDER = ROOT / ".run/learning"
ITERATIONS = 3
ROUNDS_EACH = 2
"""Rounds of votes that a version may take, in the mean of a run."""
ASKED = 320
"""Prompts of a round; where both answers are the same there is no vote."""
THUMBS = 150
FIRST_SEED = 2
"""Of v1.0's training."""
POINT = 0.7
"""Points of the five-point scale that one unit of the taste is worth."""
ABLATIONS = (
    *("none", "no_sft", *FLIPPED, *ZEALOTS, *BY_AI),
    *("length", "thumbs", "newest", "no_shorter"),
)
NO_SFT = {"loss": ["sigmoid"], "loss_weights": [1.0]}
RULES = {
    "uncapped": {"rater_share": 1.0},
    "newest": {"lag_weight": 1e-6},
    "no_shorter": {"compared_length_ratio": None},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.learning", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="goes on from what is there")
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--iterations", type=int, choices=range(1, 4), default=ITERATIONS)
    parser.add_argument("--ablation", choices=ABLATIONS, nargs="+", default=["none"])
    parser.add_argument("--report", action="store_true", help="trains nothing")
    chosen = parser.parse_args(arguments)
    root, missed = chosen.folder.resolve(), list[str]()
    if not chosen.report:
        for seed, ablation in itertools.product(chosen.seed, chosen.ablation):
            start, name = time.monotonic(), f"{ablation}, seed {seed}"
            rounds = learn(root, seed, ablation, chosen.iterations)
            took = time.monotonic() - start
            print(f"\n{name}, {took:.0f} s\n\n{table({name: rounds})}", flush=True)
            missed += [f"{name}: {text}" for text in misses(rounds, ablation, chosen.iterations)]
    seeds = whole_seeds(root)
    if seeds:
        drawn = plot(panels_of([*seeds.values()], ITERATIONS))
        (root / "learning.svg").write_text(drawn, encoding="utf-8")
    if chosen.report:
        missed += report(root, seeds)
    print("\n".join(f"missed: {text}" for text in missed) or "all goals met")
    return 1 if missed else 0


def report(root: Path, seeds: Mapping[int, Sequence[LearntRound]]) -> list[str]:
    """Print the tables of all that is in a folder; goals that a seed, the mean or an ablation missed."""
    missed, rows = list[str](), dict[str, Sequence[LearntRound]]()
    begun = {
        f"seed {seed}, not at its end": rounds
        for seed, rounds in runs_of(root, "none").items()
        if seed not in seeds
    }
    if seeds or begun:
        print(table({**begun, **with_mean("", seeds)}), end="\n\n")
        missed += begun
    if seeds:
        print(served_table(seeds, ITERATIONS), end="\n\n")
        for seed, rounds in seeds.items():
            missed += [f"seed {seed}: {text}" for text in misses(rounds, "none", ITERATIONS)]
    if len(seeds) > 1:
        mean = pooled([*seeds.values()])
        missed += [f"mean of {len(seeds)}: {one}" for one in misses(mean, "none", ITERATIONS)]
    for ablation in ABLATIONS[1:]:
        runs = runs_of(root, ablation)
        rows |= with_mean(f"{ablation}, ", runs)
        for seed, rounds in runs.items():
            missed += [f"{ablation}, seed {seed}: {text}" for text in misses(rounds, ablation, 1)]
    if rows:
        print(table(rows))
    return missed


def whole_seeds(root: Path) -> dict[int, list[LearntRound]]:
    """Runs without ablation that have come to their end, by seed; nothing is trained."""
    return {
        seed: rounds
        for seed, rounds in runs_of(root, "none").items()
        if len(released(rounds)) == ITERATIONS or len(rounds) == ITERATIONS * ROUNDS_EACH
    }


def runs_of(root: Path, ablation: str) -> dict[int, list[LearntRound]]:
    """By seed, the rounds of an ablation that are whole."""
    folders = {int(path.name.rpartition("-")[2]): path for path in root.glob(f"{ablation}-*")}
    runs = {seed: _known_rounds(folders[seed]) for seed in sorted(folders)}
    return {seed: rounds for seed, rounds in runs.items() if rounds}


def _known_rounds(folder: Path) -> list[LearntRound]:
    found: list[LearntRound] = []
    while (path := folder / f"round-{len(found) + 1}.json").exists():
        found.append(LearntRound(**json.loads(path.read_bytes())))
    return found


@dataclass(frozen=True)
class FirstVersion:
    """v1.0 and what a seed measures with it: the same for all of the seed's runs."""

    taste: HiddenTaste
    made: JobResult
    judged: Sequence[corpus.Prompt]
    """Prompts of the final measure."""
    answers: Sequence[str]
    offset: float
    thumbs: Sequence[Feedback]


@dataclass(frozen=True)
class ServedVersion:
    """What users have: the adapter's folder, the version, its answers to the final measure."""

    adapter: str
    version: str
    answers: Sequence[str]


def learn(root: Path, seed: int, ablation: str, iterations: int) -> list[LearntRound]:
    """Rounds of votes, each with its job, until so many versions are released.

    What is on disk of a round, its samples, its job and its measure, is not done again.
    """
    folder = root / f"{ablation}-{seed}"
    first, prompts = first_version(root, seed), asked_in_rounds(seed)
    served = ServedVersion(first.made.candidate, first.made.version, first.answers)
    versions, feedback = first.made.versions, [*first.thumbs]
    rounds, waiting = list[LearntRound](), list[int]()
    most = iterations * (1 if ablation in MUST_FAIL else ROUNDS_EACH)
    while len(rounds) < most and len(released(rounds)) < iterations:
        number = len(rounds) + 1
        name = f"{seed}-{number}"
        sampling = (root / f"first-{seed}" if number == 1 else folder) / f"samples-{number}"
        twice = answered_twice(sampling, served.adapter, next(prompts), 100 * seed + number)
        new = votes(twice, first.taste, ablation, version=served.version, name=name, week=number)
        feedback += new
        job = requested(f"{ablation}-{name}", seed, served.version, ablation)
        made = do_job(folder, job, versions=versions, feedback=feedback, rules=RULES.get(ablation))
        versions = made.versions
        waiting.append(len(new))
        measuring = folder / f"measure-{number}"
        answers = texts(answers_of(measuring, made.candidate, first.judged, seed))
        rounds.append(
            LearntRound(
                name=f"v1.{len(released(rounds)) + 1}",
                released=made.released,
                votes=[*waiting],
                attempts=made.attempts,
                failed=made.failed,
                figures=made.figures,
                satisfaction=statistics.fmean(scored(first.taste, answers, first.offset)),
                gain=gain(first.taste, answers, first.answers, first.offset),
                wins_first=win_rate(first.taste, answers, first.answers),
                wins_parent=win_rate(first.taste, answers, served.answers),
                wins_gate=win_rate(first.taste, *gate_answers(made))[0],
            )
        )
        (folder / f"round-{number}.json").write_text(json.dumps(asdict(rounds[-1]), indent=1))
        if made.released:
            served, waiting = ServedVersion(made.candidate, made.version, answers), []
    return rounds


def first_version(root: Path, seed: int) -> FirstVersion:
    """v1.0, what it answers to a seed's prompts, and the thumbs on its answers."""
    made, folder, taste = (
        _trained_first(root / "first"),
        root / f"first-{seed}",
        HiddenTaste.drawn(seed),
    )
    others = random.Random(seed).sample(corpus.prompts_of("eval"), JUDGED + THUMBS)
    judged, thumbed = others[:JUDGED], others[JUDGED:]
    answers = texts(answers_of(folder / "measure", made.candidate, judged, seed))
    said = answers_of(folder / "thumbs", made.candidate, thumbed, seed)
    given = thumbs(thumbed, said, taste, version=made.version, name=f"thumb-{seed}")
    return FirstVersion(taste, made, judged, answers, scale(folder, taste, answers), given)


def _trained_first(folder: Path) -> JobResult:
    """v1.0 by SFT on the starter's demonstrations."""
    demonstrations = folder / "demonstrations.jsonl"
    if not demonstrations.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = read(Path(starter()["demonstrations"]))
        write(demonstrations, [{"messages": row["prompt"] + row["completion"]} for row in rows])
    made = do_job(
        folder,
        TrainingRequested(
            job_id="first",
            model=MODEL,
            method=TrainingMethod.sft,
            base=starter()["model"],
            dataset_uri=demonstrations.as_uri(),
            seed=FIRST_SEED,
            actor="benchmark",
            requested_at=BEGIN,
        ),
    )
    if not made.released:
        sys.exit(f"v1.0 was refused: {made.message}")
    return made


def asked_in_rounds(seed: int) -> Iterator[list[corpus.Prompt]]:
    """What each round's raters are asked: never a prompt twice, nor one of the measure or thumbs."""
    fresh = [*corpus.prompts_of("serve"), *corpus.prompts_of("judge")]
    known = [*corpus.prompts_of("train")]
    for pool in (fresh, known):
        random.Random(seed).shuffle(pool)
    pool = [*fresh, *known]
    yield from (pool[at : at + ASKED] for at in range(0, len(pool), ASKED))


def requested(job_id: str, seed: int, parent: str, ablation: str) -> TrainingRequested:
    """The job that the schedule would ask for."""
    return TrainingRequested(
        job_id=job_id,
        model=MODEL,
        method=TrainingMethod.dpo,
        algorithm="kto" if ablation == "thumbs" else "",
        parent=parent,
        hyperparameters=NO_SFT if ablation == "no_sft" else {},
        seed=seed,
        actor="benchmark",
        requested_at=BEGIN,
    )


def answered_twice(
    folder: Path, adapter: str, prompts: Sequence[corpus.Prompt], seed: int
) -> list[Asked]:
    """Prompts with two answers each."""
    said = answers_of(folder, adapter, [*prompts, *prompts], seed)
    both = zip(said[: len(prompts)], said[len(prompts) :], strict=True)
    return [Asked(prompt, pair) for prompt, pair in zip(prompts, both, strict=True)]


def answers_of(
    folder: Path, adapter: str, prompts: Sequence[corpus.Prompt], seed: int
) -> list[SaidAnswer]:
    """What an adapter answers, one answer a prompt, with the limits of the evaluation."""
    path = folder / "answers.jsonl"
    if not path.exists():
        sample_answers(folder, adapter, turns(prompts), seed=seed)
    return [SaidAnswer(row["answer"], row["cut"]) for row in read(path)]


def gate_answers(made: JobResult) -> tuple[list[str], list[str]]:
    """What the last candidate and its parent answered to the prompts that the gate looked at."""
    rows = read(Path(made.candidate).parent / "answers.jsonl")
    return [row["candidate"] for row in rows], [row["parent"] for row in rows]


def texts(answers: Sequence[SaidAnswer]) -> list[str]:
    return [answer.text for answer in answers]


def scale(folder: Path, taste: HiddenTaste, answers: Sequence[str]) -> float:
    """The offset by which v1.0 scores 3.5; once written it is never fitted again."""
    path = folder / "scale.json"
    if not path.exists():
        offset = 0.0
        for _ in range(50):  # scores are clipped, so that the mean is not linear in the offset
            offset += FIRST_SCORE - statistics.fmean(scored(taste, answers, offset))
        path.write_text(json.dumps({"offset": offset, "point": POINT}))
    return float(json.loads(path.read_text())["offset"])


def scored(taste: HiddenTaste, answers: Sequence[str], offset: float) -> list[float]:
    """Scores of one to five."""
    return [min(5.0, max(1.0, offset + POINT * taste.utility(answer))) for answer in answers]


def gain(
    taste: HiddenTaste, answers: Sequence[str], others: Sequence[str], offset: float
) -> tuple[float, float]:
    """95 % interval (normal) of the mean score gained over others' answers to the same prompts."""
    both = zip(scored(taste, answers, offset), scored(taste, others, offset), strict=True)
    gained = [score - before for score, before in both]
    middle = statistics.fmean(gained)
    spread = TWO_SIDED_95 * statistics.stdev(gained) / math.sqrt(len(gained))
    return middle - spread, middle + spread


def win_rate(taste: HiddenTaste, answers: Sequence[str], others: Sequence[str]) -> Rate:
    """Share of prompts on which the taste prefers the first answers, ties half; 95 % interval."""
    gaps = [taste.utility(a) - taste.utility(b) for a, b in zip(answers, others, strict=True)]
    won = sum(0.5 if gap == 0 else float(gap > 0) for gap in gaps)
    return (won / len(gaps), *wilson(won, len(gaps)))


if __name__ == "__main__":
    # For this process alone: what calls `main` has a log of its own.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.exit(main())
