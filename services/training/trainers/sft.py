"""Supervised fine-tuning: a new LoRA on the base, the loss on the answer's tokens alone."""

from __future__ import annotations

from pathlib import Path

from trl import SFTConfig, SFTTrainer

from services.training.trainers.arguments import (
    CHECKPOINTS,
    ReportProgress,
    arguments,
    save_adapter,
    train,
)
from services.training.trainers.job import Progress, TrainerJob, iterate_rows
from services.training.trainers.models import (
    conversations,
    load_base,
    load_tokenizer,
    lora,
    set_seeds,
)
from services.training.trainers.rows import row_files
from shared.contracts.recipes import SftHyperparameters


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Train on `train.jsonl` and write `adapter/`; returns the last logged figures."""
    parameters = job.trained
    assert isinstance(parameters, SftHyperparameters)
    set_seeds(job.seed)
    callback = ReportProgress("sft", progress)
    checkpoints = folder / "checkpoints"
    with row_files(folder, "sft", progress) as files:
        rows = conversations(
            iterate_rows(Path(job.data) / "train.jsonl"),
            {"answer": "completion"},
            files,
            reasoning=parameters.reasoning,
        )
        settings = arguments(parameters, checkpoints, rows=len(rows), seed=job.seed)
        if parameters.packing:
            # How many rows are left is known once they are packed: shares in place of steps.
            settings |= {"packing": True, "save_steps": 1 / CHECKPOINTS}
            settings |= {"warmup_steps": parameters.warmup}
        trainer = SFTTrainer(
            model=load_base(job.base, four_bit=parameters.four_bit),
            processing_class=load_tokenizer(job.base),
            args=SFTConfig(completion_only_loss=True, **settings),
            train_dataset=rows,
            peft_config=lora(parameters.lora, task="CAUSAL_LM"),
            callbacks=[callback],
        )
        train(trainer, checkpoints)
    save_adapter(trainer, folder)
    return callback.figures()
