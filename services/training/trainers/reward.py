"""Reward model (the evaluation's judge): Bradley-Terry on votes of raters kept apart.

Base with score heads and a LoRA, trained on log sigmoid(score(chosen) - score(rejected))
(Bradley & Terry 1952; Ouyang et al. 2022, section 3.5). It is no arm of any comparison. Several
heads on one adapter are a last-layer ensemble: their mean is the score, their spread how unsure it is.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from services.training.dataset_rows import prompt_of
from services.training.sides import digest
from services.training.spill import SpilledTable
from services.training.thumbs import paired_thumbs
from services.training.trainers import processes
from services.training.trainers.agreement import (
    agreement,
    by_category,
    calibration_error,
    deciles,
    predecessor_judges,
)
from services.training.trainers.arguments import ReportProgress, arguments, save_adapter, train
from services.training.trainers.job import (
    Progress,
    Stage,
    TrainerJob,
    iterate_rows,
    stored_rows,
    write_json,
)
from services.training.trainers.models import (
    answer_of,
    by_tokens,
    conversation_ids,
    device,
    dtype,
    load_tokenizer,
    loading,
    lora,
    padded,
    set_seeds,
    template_turn,
    turns_before,
)
from services.training.trainers.rows import TURNS, RowFiles, TokenRows, row_files
from shared.contracts.row_sources import MACHINE_MADE

SIDES = ("chosen", "rejected")
HEAD = "score.weight"
SCORE_BATCH = 32
SCORE_TOKENS = 8192
"""Most rows and most padded tokens that are scored at a time."""
READING = "reading votes"
SCORED_A_STEP = 32
"""Answers scored that count as one step of progress, about what a step of training costs."""


def run(job: TrainerJob, _: Path, progress: Progress) -> dict[str, float]:
    """Train on `judge.jsonl`, write the judge, and measure it on `train.jsonl` and `heldout.jsonl`.

    Those are votes of other raters on other prompts, so their share in which the judge agrees is
    an honest accuracy; where there is no vote, thumbs in pairs, good against bad. Returns it as
    `judge_agreed` of `judge_tested` pairs, NaN where a score is no finite number, and
    `judge_calibration_error`; with a predecessor also what `_compared` returns. Pairs that differ
    only beyond `max_length` tokens are not tested.
    """
    data = Path(job.data)
    rows = stored_rows(data / "judge.jsonl")
    tested = stored_rows(data / "heldout.jsonl", data / "train.jsonl")
    judge = Path(job.judge)
    figures = fit(job, rows, tested, judge, "reward", progress, predecessor=job.predecessor)
    return {
        name if name.startswith("train_") else f"judge_{name}": value
        for name, value in figures.items()
    }


def fit(
    job: TrainerJob,
    rows: Iterable[dict[str, Any]],
    tested: Collection[dict[str, Any]],
    place: Path,
    stage: Stage,
    progress: Progress,
    *,
    predecessor: str = "",
) -> dict[str, float]:
    """Train a reward model on pairs and write it to `<place>/adapter`; `tested` is read repeatedly.

    `<place>/categories.json` has, by category, in how many of how many pairs it agreed, and
    `<place>/deciles.json` those of its scores of the tested answers.

    Returns:
        Figures of the training (`train_…`), its `pairs`, in how many of the `tested` pairs it
        `agreed`, and its expected `calibration_error`; of several heads what `disagreement` returns,
        and with the folder of a `predecessor` what `_compared` returns.

    """
    set_seeds(job.seed)
    tokenizer = load_tokenizer(job.base)
    learned = SpilledTable[bytes]()
    for row in iterate_rows(Path(job.predecessor_pairs)) if predecessor else ():
        for prompt in _prompts(row):
            learned.add(prompt)
    read = progress.counted(stage, READING, tested, len(tested))
    voted = any("chosen" in row for row in _of_people(tested))
    pairs = _tested(job, tokenizer, read, learned, voted=voted)
    scored = len(pairs.chosen) + (len(pairs.unknown) if predecessor else 0)
    after = math.ceil(2 * scored / SCORED_A_STEP)
    callback = ReportProgress(stage, progress, after=after)
    with row_files(place, stage, progress) as files:
        trainer, learnt = _trained(job, tokenizer, rows, place, callback, files)
    trained, answered = trainer.state.max_steps, 0

    def note(count: int) -> None:
        nonlocal answered
        answered += count
        progress.report(stage, trained + answered // SCORED_A_STEP, trained + after)

    model = trainer.model.eval()
    chosen, rejected = _side_scores(model, tokenizer, pairs, note)
    by_head = chosen - rejected
    margins = by_head.mean(1).tolist()
    figures = {f"train_{name}": value for name, value in callback.figures().items()}
    if predecessor:
        before = load_scorer(job, tokenizer, Path(predecessor))
        figures |= _compared(before, tokenizer, pairs, margins, note)
    progress.report(stage, trained + after, trained + after)
    if processes.rank() == 0:
        write_json(place / "categories.json", by_category(pairs.categories, margins))
        write_json(place / "deciles.json", deciles(torch.cat([chosen, rejected]).mean(1).tolist()))
    if job.reward.heads > 1:
        figures |= disagreement(by_head)
    return figures | {
        "pairs": float(learnt),
        "agreed": agreement(margins),
        "tested": float(len(pairs.chosen)),
        "calibration_error": calibration_error(margins),
    }


def _trained(
    job: TrainerJob,
    tokenizer: Any,
    rows: Iterable[dict[str, Any]],
    place: Path,
    callback: ReportProgress,
    files: RowFiles,
) -> tuple[RewardTrainer, int]:
    """The trainer at its end, with the adapter written, and the pairs that it learnt from."""
    checkpoints = place / "checkpoints"
    pairs = _whole_conversations(rows, files)
    config = arguments(job.reward, checkpoints, rows=len(pairs), seed=job.seed)
    model = _score_model(job.base, tokenizer, job.seed, job.reward.heads)
    # TRL refuses a configuration of several labels, though its loss is a mean over all scores.
    model.config.num_labels = 1
    trainer = RewardTrainer(
        model=model,
        processing_class=tokenizer,
        args=RewardConfig(center_rewards_coefficient=job.reward.center_rewards or None, **config),
        train_dataset=pairs,
        peft_config=lora(job.reward.lora, task="SEQ_CLS", modules_to_save=["score"]),
        callbacks=[callback],
    )
    train(trainer, checkpoints)
    save_adapter(trainer, place)
    return trainer, len(pairs)


@dataclass(frozen=True)
class TestedPairs:
    """Pairs as the judge reads them, and the category that each was asked in."""

    categories: list[str] = field(default_factory=list[str])
    chosen: TokenRows = field(default_factory=TokenRows)
    rejected: TokenRows = field(default_factory=TokenRows)
    unknown: array[int] = field(default_factory=lambda: array("q"))
    """Places of the pairs on prompts that the predecessor did not learn from."""


def _whole_conversations(rows: Iterable[dict[str, Any]], files: RowFiles) -> Dataset:
    """Pairs in TRL's form with the prompt in both sides, as those of thumbs differ."""
    return files.mapped(
        (
            {
                "tools": row.get("tools"),
                **{
                    side: [
                        template_turn(turn)
                        for turn in (*turns_before(row, side), answer_of(row, side))
                    ]
                    for side in SIDES
                },
            }
            for row in rows
        ),
        Features({**dict.fromkeys(SIDES, TURNS), "tools": Value("string")}),
    )


def load_scorer(job: TrainerJob, tokenizer: Any, adapter: Path) -> Any:
    """A reward model of the job's base that `fit` wrote, ready to score."""
    base = _score_model(job.base, tokenizer, job.seed, heads_of(adapter))
    return PeftModel.from_pretrained(base, str(adapter)).eval()


def judge_adapter(job: TrainerJob) -> Path | None:
    """The adapter of the reward model that judges, see `predecessor_judges`; None without one."""
    place = Path(job.judge)
    if not job.judge or not (place / "adapter").exists():
        return None
    noted = place / "reward.json"
    figures = json.loads(noted.read_bytes()) if job.predecessor and noted.exists() else {}
    return Path(job.predecessor) if predecessor_judges(figures) else place / "adapter"


def _tested(
    job: TrainerJob,
    tokenizer: Any,
    rows: Iterable[dict[str, Any]],
    learned: Container[bytes],
    *,
    voted: bool,
) -> TestedPairs:
    """Pairs of people that the judge reads differently; where nobody voted, their thumbs in pairs.

    `learned` are digests of the prompts that the predecessor learned from.
    """
    found = TestedPairs()
    people = _of_people(rows)
    pairs = (row for row in people if "chosen" in row) if voted else paired_thumbs(people)
    for row in pairs:
        chosen, rejected = _judged_sides(job, tokenizer, row)
        if chosen != rejected:
            found.categories.append(sys.intern(str(row.get("meta", {}).get("category", ""))))
            if not any(prompt in learned for prompt in _prompts(row)):
                found.unknown.append(len(found.chosen))
            found.chosen.append(chosen)
            found.rejected.append(rejected)
    return found


def _prompts(row: Mapping[str, Any]) -> Iterator[bytes]:
    """Digests of the prompts of a pair, which thumbs in pairs have two of."""
    for side in SIDES[: 2 if "rejected_messages" in row else 1]:
        yield digest(prompt_of({**row, "messages": turns_before(row, side)}).normal)


def _of_people(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row.get("meta", {}).get("source") not in MACHINE_MADE)


def _judged_sides(job: TrainerJob, tokenizer: Any, row: dict[str, Any]) -> list[list[int]]:
    return [
        judged_ids(
            job, tokenizer, {**row, "messages": turns_before(row, side)}, answer_of(row, side)
        )
        for side in SIDES
    ]


def _side_scores(
    model: Any, tokenizer: Any, pairs: TestedPairs, note: Callable[[int], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the chosen and of the rejected answers, each `[pairs, heads]`."""
    chosen = head_scores(model, tokenizer, pairs.chosen, note)
    return chosen, head_scores(model, tokenizer, pairs.rejected, note)


def disagreement(margins: torch.Tensor) -> dict[str, float]:
    """Spread of the heads' margins, their standard deviation, on pairs judged right and wrong.

    Where the latter is not larger, the heads do not know what the model does not know.

    Args:
        margins: `[pairs, heads]`.

    Returns:
        `disagreement_right` and `disagreement_wrong`, each only where there is such a pair.

    """
    spread, right = margins.std(1, correction=0), margins.mean(1) > 0
    sides = {"disagreement_right": spread[right], "disagreement_wrong": spread[~right]}
    return {name: float(side.mean()) for name, side in sides.items() if len(side)}


def _compared(
    predecessor: Any,
    tokenizer: Any,
    pairs: TestedPairs,
    margins: Sequence[float],
    note: Callable[[int], None],
) -> dict[str, float]:
    """A new reward model beside the one that was published before, on pairs neither learned from.

    A prompt may have been the predecessor's and be trained on by now, so a pair on such a prompt is
    left out: the predecessor would know it, and the new one would not.

    Args:
        predecessor: The reward model that was published before.
        tokenizer: The base's.
        pairs: What the new one is tested on.
        margins: The new one's, of each of those.
        note: Hears how many rows were scored, after each batch.

    Returns:
        `compared` pairs, and in how many of them each agrees: `compared_agreed` of the new one and
        `predecessor_agreed`.

    """
    same = TestedPairs()
    for place in pairs.unknown:
        same.chosen.append(pairs.chosen[place])
        same.rejected.append(pairs.rejected[place])
    chosen, rejected = _side_scores(predecessor, tokenizer, same, note)
    return {
        "compared": float(len(pairs.unknown)),
        "compared_agreed": agreement([margins[place] for place in pairs.unknown]),
        "predecessor_agreed": agreement((chosen - rejected).mean(1).tolist()),
    }


def judged_ids(
    job: TrainerJob, tokenizer: Any, row: Mapping[str, Any], answer: str | Mapping[str, Any]
) -> list[int]:
    """What the judge reads of an answer to a line's prompt: no more than what it learnt from."""
    ids = conversation_ids(tokenizer, row["messages"], answer, row.get("tools", ""))
    return ids[: job.reward.max_length]


def score(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], note: Callable[[int], None]
) -> list[float]:
    """A score for each row, the mean of its heads; only differences mean something.

    Args:
        model: The judge.
        tokenizer: Its tokenizer.
        rows: What `judged_ids` returns.
        note: Hears how many rows were scored, after each batch.

    """
    return head_scores(model, tokenizer, rows, note).mean(1).tolist()


@torch.no_grad()
def head_scores(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], note: Callable[[int], None]
) -> torch.Tensor:
    """The heads' scores of each row, `[rows, heads]`; see `score`."""
    scores = torch.zeros(len(rows), model.num_labels)
    for batch in by_tokens([len(row) for row in rows], tokens=SCORE_TOKENS, rows=SCORE_BATCH):
        ids, mask = padded([rows[i] for i in batch], tokenizer.pad_token_id, left=False)
        scores[batch] = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
        note(len(batch))
    return scores


def heads_of(adapter: Path) -> int:
    """How many score heads a reward model was written with."""
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        name = next(name for name in file.keys() if name.endswith(HEAD))  # noqa: SIM118
        return int(file.get_slice(name).get_shape()[0])


def _score_model(base: str, tokenizer: Any, seed: int, heads: int) -> Any:
    set_seeds(seed)
    with loading(base):
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=heads, dtype=dtype()
        ).to(device())
    model.config.pad_token_id = tokenizer.pad_token_id
    return model
