"""DPO: continues the parent's adapter, or the base with a new one; what it began as is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl import DPOConfig, DPOTrainer

from services.training.trainers.arguments import ReportProgress, arguments, save_adapter, train
from services.training.trainers.job import Progress, TrainerJob, iterate_rows
from services.training.trainers.models import (
    conversations,
    end_tokens,
    load_tokenizer,
    set_seeds,
    start_of,
    without_end,
)
from services.training.trainers.rows import row_files
from shared.contracts.recipes import DpoHyperparameters


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Train on `train.jsonl` and write `adapter/`; returns the last logged figures."""
    parameters = job.trained
    assert isinstance(parameters, DpoHyperparameters)
    set_seeds(job.seed)
    callback = ReportProgress("dpo", progress)
    checkpoints = folder / "checkpoints"
    tokenizer = load_tokenizer(job.base)
    model = start_of(job, parameters)
    with row_files(folder, "dpo", progress) as files:
        rows = conversations(
            iterate_rows(Path(job.data) / "train.jsonl"),
            {"chosen": "chosen", "rejected": "rejected"},
            files,
            flags=("chosen_cut", "rejected_cut"),
            reasoning=parameters.reasoning,
        )
        trainer = DPOTrainer(
            model=model,
            processing_class=tokenizer,
            args=DPOConfig(
                beta=parameters.beta,
                loss_type=list(parameters.loss),
                loss_weights=list(parameters.loss_weights),
                label_smoothing=parameters.label_smoothing,
                **arguments(parameters, checkpoints, rows=len(rows), seed=job.seed),
            ),
            train_dataset=rows,
            callbacks=[callback],
        )
        trainer.train_dataset = trainer.train_dataset.map(
            _as_they_ended, fn_kwargs={"ends": end_tokens(model.generation_config, tokenizer)}
        )
        train(trainer, checkpoints)
    save_adapter(trainer, folder)
    return callback.figures()


def _as_they_ended(row: dict[str, Any], ends: set[int]) -> dict[str, list[int]]:
    """Answers without the end-of-turn token that the chat template adds to a truncated generation.

    With it, a chosen answer would teach to stop in the middle of a sentence, and a rejected one
    not to stop at all.
    """
    return {
        f"{side}_ids": without_end(row[f"{side}_ids"], ends)
        if row[f"{side}_cut"]
        else row[f"{side}_ids"]
        for side in ("chosen", "rejected")
    }
