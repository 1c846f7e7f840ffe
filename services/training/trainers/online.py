"""RL against the reward model on answers sampled from the policy: what GRPO and RLOO share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.training.trainers.arguments import ReportProgress, arguments, save_adapter, train
from services.training.trainers.job import Progress, Stage, TrainerJob, read_rows
from services.training.trainers.models import (
    Messages,
    conversations,
    load_adapter,
    load_base,
    load_tokenizer,
    set_seeds,
)
from services.training.trainers.reward import judged_ids, load_scorer, score
from shared.contracts.recipes import OnlineHyperparameters

Reward = Callable[..., list[float]]


def run(
    job: TrainerJob, folder: Path, progress: Progress, stage: Stage, trainer_class: Any, config: Any
) -> dict[str, float]:
    """Train on the prompts of `train.jsonl` and write `adapter/`; returns the last logged figures.

    Args:
        job: What to train.
        folder: The attempt's folder; `proxy/` in it has the reward model.
        progress: Where steps are noted.
        stage: The method's name.
        trainer_class: TRL's trainer of the method.
        config: TRL's configuration of the method.

    """
    parameters = job.trained
    assert isinstance(parameters, OnlineHyperparameters)
    prompts = unique(read_rows(Path(job.data) / "train.jsonl"))
    set_seeds(job.seed)
    callback = ReportProgress(stage, progress)
    checkpoints = folder / "checkpoints"
    tokenizer = load_tokenizer(job.base)
    rows = len(prompts) * parameters.generations
    settings = arguments(parameters, checkpoints, rows=rows, seed=job.seed)
    settings.pop("max_length")
    trainer = trainer_class(
        model=load_adapter(load_base(job.base), job.parent_adapter, trainable=True),
        processing_class=tokenizer,
        reward_funcs=[scorer(job, tokenizer, folder / "proxy")],
        args=config(
            beta=parameters.beta,
            epsilon=parameters.clip,
            num_generations=parameters.generations,
            max_completion_length=parameters.max_new_tokens,
            temperature=parameters.temperature,
            **settings,
        ),
        train_dataset=conversations(prompts, {}).remove_columns("tools"),
        callbacks=[callback],
    )
    train(trainer, checkpoints)
    save_adapter(trainer.model, folder)
    return callback.figures()


def scorer(job: TrainerJob, tokenizer: Any, place: Path) -> Reward:
    """TRL's reward function: the reward model's score of each prompt with its completion."""
    model = load_scorer(job, tokenizer, place / "adapter")

    def reward(
        prompts: Sequence[Messages], completions: Sequence[Messages], **_: Any
    ) -> list[float]:
        read = [
            judged_ids(job, tokenizer, {"messages": prompt}, completion[0])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return score(model, tokenizer, read, lambda _: None)

    return reward


def unique(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A line of each prompt, in the order of the lines."""
    seen = {str(row["messages"]): row for row in rows}
    return list(seen.values())
