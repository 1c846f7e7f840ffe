"""Reward model (the evaluation's judge): Bradley-Terry on votes of raters kept apart.

Base with a score head and a LoRA, trained on log sigmoid(score(chosen) - score(rejected))
(Bradley & Terry 1952; Ouyang et al. 2022, section 3.5). It is no arm of any comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from services.training.trainers.arguments import ReportProgress, arguments, train
from services.training.trainers.job import Progress, Stage, TrainerJob, read_rows
from services.training.trainers.models import (
    answer_of,
    by_tokens,
    conversation_ids,
    conversations,
    device,
    dtype,
    load_tokenizer,
    lora,
    padded,
    set_seeds,
)

SCORE_BATCH = 32
SCORE_TOKENS = 8192
"""Most rows and most padded tokens that are scored at a time."""
SCORED_A_STEP = 32
"""Answers scored that count as one step of progress, about what a step of training costs."""


def run(job: TrainerJob, _: Path, progress: Progress) -> dict[str, float]:
    """Train on `judge.jsonl`, write the judge, and measure it on `train.jsonl` and `heldout.jsonl`.

    Those are votes of other raters on other prompts, so their share in which the judge agrees is
    an honest accuracy. Returns it as `judge_agreed` of `judge_tested` pairs, NaN where a score is
    no finite number. Pairs that differ only beyond `max_length` tokens are not tested.
    """
    data = Path(job.data)
    rows = read_rows(data / "judge.jsonl")
    tested = [*read_rows(data / "heldout.jsonl"), *read_rows(data / "train.jsonl")]
    figures = fit(job, rows, tested, Path(job.judge), "reward", progress)
    return {
        name if name.startswith("train_") else f"judge_{name}": value
        for name, value in figures.items()
    }


def fit(
    job: TrainerJob,
    rows: Sequence[dict[str, Any]],
    tested: Sequence[dict[str, Any]],
    place: Path,
    stage: Stage,
    progress: Progress,
) -> dict[str, float]:
    """Train a reward model on pairs and write it to `<place>/adapter`.

    Returns:
        Figures of the training (`train_…`), its `pairs`, and in how many of the `tested` pairs it
        `agreed`.

    """
    set_seeds(job.seed)
    tokenizer = load_tokenizer(job.base)
    read = [
        (
            judged_ids(job, tokenizer, row, answer_of(row, "chosen")),
            judged_ids(job, tokenizer, row, answer_of(row, "rejected")),
        )
        for row in tested
        if "chosen" in row
    ]
    pairs = [(chosen, rejected) for chosen, rejected in read if chosen != rejected]
    after = math.ceil(2 * len(pairs) / SCORED_A_STEP)
    callback = ReportProgress(stage, progress, after=after)
    checkpoints = place / "checkpoints"
    config = arguments(job.reward, checkpoints, rows=len(rows), seed=job.seed)
    trainer = RewardTrainer(
        model=_score_model(job.base, tokenizer, job.seed),
        processing_class=tokenizer,
        args=RewardConfig(center_rewards_coefficient=job.reward.center_rewards or None, **config),
        train_dataset=conversations(rows, {"chosen": "chosen", "rejected": "rejected"}),
        peft_config=lora(job.reward.lora, task="SEQ_CLS", modules_to_save=["score"]),
        callbacks=[callback],
    )
    train(trainer, checkpoints)
    trainer.model.save_pretrained(str(place / "adapter"))
    trained, answered = trainer.state.max_steps, 0

    def note(count: int) -> None:
        nonlocal answered
        answered += count
        progress.report(stage, trained + answered // SCORED_A_STEP, trained + after)

    model = trainer.model.eval()
    chosen = score(model, tokenizer, [chosen for chosen, _ in pairs], note)
    rejected = score(model, tokenizer, [rejected for _, rejected in pairs], note)
    progress.report(stage, trained + after, trained + after)
    agreed = math.nan
    if all(map(math.isfinite, [*chosen, *rejected])):
        agreed = float(sum(good > bad for good, bad in zip(chosen, rejected, strict=True)))
    figures = {f"train_{name}": value for name, value in callback.figures().items()}
    return figures | {
        "pairs": float(len(rows)),
        "agreed": agreed,
        "tested": float(len(pairs)),
    }


def load_scorer(job: TrainerJob, tokenizer: Any, place: Path) -> Any:
    """The reward model that `fit` wrote to a place, ready to score."""
    base = _score_model(job.base, tokenizer, job.seed)
    return PeftModel.from_pretrained(base, str(place / "adapter")).eval()


def judged_ids(
    job: TrainerJob, tokenizer: Any, row: Mapping[str, Any], answer: str | Mapping[str, Any]
) -> list[int]:
    """What the judge reads of an answer to a line's prompt: no more than what it learnt from."""
    ids = conversation_ids(tokenizer, row["messages"], answer, row.get("tools", ""))
    return ids[: job.reward.max_length]


@torch.no_grad()
def score(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], note: Callable[[int], None]
) -> list[float]:
    """A score for each row; higher is better, and only differences mean something.

    Args:
        model: The judge.
        tokenizer: Its tokenizer.
        rows: What `judged_ids` returns.
        note: Hears how many rows were scored, after each batch.

    """
    scores = [0.0] * len(rows)
    for batch in by_tokens([len(row) for row in rows], tokens=SCORE_TOKENS, rows=SCORE_BATCH):
        ids, mask = padded([rows[i] for i in batch], tokenizer.pad_token_id, left=False)
        logits = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float().tolist()
        for index, value in zip(batch, logits, strict=True):
            scores[index] = value
        note(len(batch))
    return scores


def _score_model(base: str, tokenizer: Any, seed: int) -> Any:
    set_seeds(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype())
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device())
