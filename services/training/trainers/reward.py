"""The evaluation's judge: a Bradley-Terry reward model from votes of raters kept apart.

Base with a score head and a LoRA, trained on log sigmoid(score(chosen) - score(rejected))
(Bradley & Terry 1952; Ouyang et al. 2022, section 3.5). It is no arm of any comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from services.training.trainers.arguments import ReportProgress, arguments, train
from services.training.trainers.job import Progress, TrainerJob, read_rows
from services.training.trainers.models import (
    Messages,
    conversation_ids,
    device,
    dtype,
    in_batches,
    load_tokenizer,
    lora,
    padded,
    set_seeds,
)

SCORE_BATCH = 32


def run(job: TrainerJob, _: Path, progress: Progress) -> dict[str, float]:
    """Train on `judge.jsonl`, write the judge, and measure it on `train.jsonl` and `heldout.jsonl`.

    Those are votes of other raters on other prompts, so their share in which the judge agrees is
    an honest accuracy. Returns it as `judge_agreed` of `judge_tested` pairs.
    """
    data = Path(job.data)
    rows = read_rows(data / "judge.jsonl")
    judge = Path(job.judge)
    set_seeds(job.seed)
    tokenizer = load_tokenizer(job.base)
    callback = ReportProgress("reward", progress)
    checkpoints = judge / "checkpoints"
    config = arguments(job.reward, checkpoints, rows=len(rows), seed=job.seed)
    trainer = RewardTrainer(
        model=_score_model(job.base, tokenizer, job.seed),
        processing_class=tokenizer,
        args=RewardConfig(center_rewards_coefficient=job.reward.center_rewards or None, **config),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": row["messages"],
                    "chosen": [{"role": "assistant", "content": row["chosen"]}],
                    "rejected": [{"role": "assistant", "content": row["rejected"]}],
                }
                for row in rows
            ]
        ),
        peft_config=lora(job.reward.lora, task="SEQ_CLS", modules_to_save=["score"]),
        callbacks=[callback],
    )
    train(trainer, checkpoints)
    trainer.model.save_pretrained(str(judge / "adapter"))
    tests = [
        row
        for name in ("heldout.jsonl", "train.jsonl")
        for row in read_rows(data / name)
        if "chosen" in row
    ]
    model = trainer.model.eval()
    chosen = score(model, tokenizer, [(row["messages"], row["chosen"]) for row in tests])
    rejected = score(model, tokenizer, [(row["messages"], row["rejected"]) for row in tests])
    agreed = sum(good > bad for good, bad in zip(chosen, rejected, strict=True))
    figures = {f"train_{name}": value for name, value in callback.figures().items()}
    return figures | {
        "judge_pairs": float(len(rows)),
        "judge_agreed": float(agreed),
        "judge_tested": float(len(tests)),
    }


def load_judge(job: TrainerJob, tokenizer: Any) -> Any:
    """The trained judge, ready to score."""
    base = _score_model(job.base, tokenizer, job.seed)
    return PeftModel.from_pretrained(base, str(Path(job.judge) / "adapter")).eval()


@torch.no_grad()
def score(model: Any, tokenizer: Any, answers: Sequence[tuple[Messages, str]]) -> list[float]:
    """A score for each (prompt, answer); higher is better, and only differences mean something."""
    rows = [conversation_ids(tokenizer, messages, answer) for messages, answer in answers]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    scores = [0.0] * len(rows)
    for batch in in_batches(order, SCORE_BATCH):
        ids, mask = padded([rows[i] for i in batch], tokenizer.pad_token_id, left=False)
        logits = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float().tolist()
        for index, value in zip(batch, logits, strict=True):
            scores[index] = value
    return scores


def _score_model(base: str, tokenizer: Any, seed: int) -> Any:
    set_seeds(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype())
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device())
