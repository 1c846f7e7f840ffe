"""KTO: single answers, good or bad, from the parent's adapter or the base, the reference."""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trl import KTOConfig, KTOTrainer

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
from shared.contracts.recipes import KtoHyperparameters


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Train on the labelled rows of `train.jsonl` and write `adapter/`; returns the last figures.

    The KL term of a row is estimated from its neighbours, so rows are shuffled once and read in
    that order.
    """
    parameters = job.trained
    assert isinstance(parameters, KtoHyperparameters)
    set_seeds(job.seed)
    callback = ReportProgress("kto", progress)
    checkpoints = folder / "checkpoints"
    tokenizer = load_tokenizer(job.base)
    model = start_of(job, parameters)
    with row_files(folder, "kto", progress) as files:
        rows = conversations(
            iterate_rows(Path(job.data) / "train.jsonl"),
            {"answer": "completion"},
            files,
            flags=("label", "answer_cut"),
            reasoning=parameters.reasoning,
        )
        desirable, undesirable = weights(parameters, rows["label"])
        order = array("q", range(len(rows)))
        random.Random(job.seed).shuffle(order)
        trainer = KTOTrainer(
            model=model,
            processing_class=tokenizer,
            args=KTOConfig(
                beta=parameters.beta,
                desirable_weight=desirable,
                undesirable_weight=undesirable,
                **arguments(parameters, checkpoints, rows=len(rows), seed=job.seed),
            ),
            train_dataset=rows.select(order),
            callbacks=[callback],
        )
        trainer.train_dataset = trainer.train_dataset.map(
            _as_it_ended, fn_kwargs={"ends": end_tokens(model.generation_config, tokenizer)}
        )
        train(trainer, checkpoints)
    save_adapter(trainer, folder)
    return callback.figures()


def weights(parameters: KtoHyperparameters, labels: Collection[bool]) -> tuple[float, float]:
    """Weights of good and bad rows; where they are not given, both kinds weigh the same.

    Ethayarajh et al. 2024, section 4.3: the ratio of weight times count lies in [1, 4/3].
    """
    good = sum(labels)
    bad = len(labels) - good
    balance = bad / good if good and bad else 1.0
    return (
        parameters.desirable_weight or max(1.0, balance),
        parameters.undesirable_weight or max(1.0, 1 / balance),
    )


def _as_it_ended(row: dict[str, Any], ends: set[int]) -> dict[str, list[int]]:
    """The answer without the end-of-turn token where generation was truncated."""
    ids = row["completion_ids"]
    return {"completion_ids": without_end(ids, ends) if row["answer_cut"] else ids}
