"""Training on answers that are sampled from the policy and scored by the reward model.

What GRPO, RLOO, PPO and online DPO share.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from services.training.sides import digest
from services.training.spill import MadeRows, SpilledTable
from services.training.trainers import processes
from services.training.trainers.arguments import (
    ReportProgress,
    adapted,
    arguments,
    save_adapter,
    train,
)
from services.training.trainers.generation import AnswerEngine, EnginePlan, by_vllm, started, told
from services.training.trainers.job import CannotTrain, Progress, Stage, TrainerJob, iterate_rows
from services.training.trainers.models import (
    Messages,
    conversations,
    dtype,
    end_tokens,
    generation_config,
    load_tokenizer,
    positions,
    set_seeds,
    start_of,
)
from services.training.trainers.monitor import PROMPTS, RewardMonitor
from services.training.trainers.present_policy import PresentPolicy
from services.training.trainers.reward import judge_adapter, judged_ids, load_scorer, score
from services.training.trainers.rows import row_files
from shared.contracts.recipes import OnlineHyperparameters

Reward = Callable[..., list[float]]


def run(
    job: TrainerJob,
    folder: Path,
    progress: Progress,
    stage: Stage,
    trainer_class: Any,
    config: Any,
    *,
    updates: int = 1,
    **own: float,
) -> dict[str, float]:
    """Train on the prompts of `train.jsonl` and write `adapter/`; returns the last logged figures.

    Args:
        job: What to train.
        folder: The attempt's folder; `proxy/` in it has the reward model.
        progress: Where steps are noted.
        stage: The method's name.
        trainer_class: The method's trainer, with TRL's arguments.
        config: The method's configuration, with TRL's names.
        updates: Weight updates on the same answers.
        own: What the method alone takes.

    Raises:
        CannotTrain: there are fewer prompts than one step takes.

    """
    parameters = job.trained
    assert isinstance(parameters, OnlineHyperparameters)
    prompts = MadeRows((Path(job.data) / "train.jsonl",), unique)
    count = len(prompts)
    require_step(count, parameters)
    set_seeds(job.seed)
    callback = ReportProgress(stage, progress)
    checkpoints = folder / "checkpoints"
    tokenizer = load_tokenizer(job.base)
    proxy = scorer(job, tokenizer, folder / "proxy" / "adapter")
    monitor = _monitor(job, folder, tokenizer, prompts, proxy)
    rows = count * parameters.generations * updates
    settings = arguments(parameters, checkpoints, rows=rows, seed=job.seed) | own
    settings.pop("max_length")
    if updates > 1:
        # A checkpoint between two updates would lose the answers that both learn from.
        settings["save_steps"] = math.ceil(settings["save_steps"] / updates) * updates
        settings["updates"] = updates
    model = start_of(job, parameters)
    with (
        row_files(folder, stage, progress) as files,
        _engine(job, folder, progress, stage, model) as engine,
    ):
        trainer = trainer_class(
            model=model,
            processing_class=tokenizer,
            reward_funcs=[proxy],
            args=config(
                beta=parameters.beta,
                num_generations=parameters.generations,
                max_completion_length=parameters.max_new_tokens,
                temperature=parameters.temperature,
                **settings,
            ),
            train_dataset=conversations(prompts, {}, files).remove_columns("tools"),
            callbacks=[callback, *monitor],
        )
        model = adapted(trainer)
        policy = None
        if engine is not None:
            policy = _policy(engine, job, folder, tokenizer, trainer)
            # As TRL's trainers set them where they start a vLLM of their own.
            trainer.use_vllm, trainer.vllm_generation = True, policy
            trainer._last_loaded_step = -1
        for one in monitor:
            one.model, one.policy = model, policy
        train(trainer, checkpoints)
    figures = callback.figures()
    for one in monitor:
        one.restore_best()
        figures |= one.figures()
    save_adapter(trainer, folder)
    return figures


@contextlib.contextmanager
def _engine(
    job: TrainerJob, folder: Path, progress: Progress, stage: Stage, model: Any
) -> Iterator[AnswerEngine | None]:
    """What writes the answers; None where this process does."""
    parameters = job.trained
    assert isinstance(parameters, OnlineHyperparameters)
    gpu = torch.cuda.is_available()
    if not by_vllm(parameters.generation, gpu=gpu, four_bit=parameters.four_bit):
        yield None
        return
    adapter = model.peft_config["default"]
    plan = EnginePlan(
        base=job.base,
        dtype=str(dtype()).removeprefix("torch."),
        rank=max(adapter.r, *adapter.rank_pattern.values(), 1),
        adapters=1,
        max_length=min(positions(job.base), parameters.max_length + parameters.max_new_tokens),
        gpu=gpu,
    )
    with started(plan, job.generation, folder, told(progress, stage)) as engine:
        yield engine


def _policy(
    engine: AnswerEngine, job: TrainerJob, folder: Path, tokenizer: Any, trainer: Any
) -> PresentPolicy:
    parameters = job.trained
    assert isinstance(parameters, OnlineHyperparameters)
    return PresentPolicy(
        engine,
        adapted(trainer),
        folder,
        step=lambda: trainer.state.global_step,
        seed=job.seed,
        sampling={
            "max_new_tokens": parameters.max_new_tokens,
            "temperature": parameters.temperature,
            "ends": end_tokens(generation_config(job.base), tokenizer),
        },
    )


def _monitor(
    job: TrainerJob,
    folder: Path,
    tokenizer: Any,
    prompts: Iterable[Mapping[str, Any]],
    proxy: Reward,
) -> list[RewardMonitor]:
    """A monitor of the training; none where there is no judge that is independent of it."""
    parameters = job.trained
    assert isinstance(parameters, OnlineHyperparameters)
    judge = judge_adapter(job)
    if judge is None:
        return []
    monitor = RewardMonitor(
        folder,
        tokenizer,
        [prompt["messages"] for prompt in islice(prompts, PROMPTS)],
        proxy=proxy,
        judge=scorer(job, tokenizer, judge),
        sampling={
            "max_new_tokens": parameters.max_new_tokens,
            "temperature": parameters.temperature,
        },
        seed=job.seed,
    )
    return [monitor]


def scorer(job: TrainerJob, tokenizer: Any, adapter: Path) -> Reward:
    """TRL's reward function: the reward model's score of each prompt with its completion."""
    model = load_scorer(job, tokenizer, adapter)

    def reward(
        prompts: Sequence[Messages], completions: Sequence[Messages], **_: Any
    ) -> list[float]:
        read = [
            judged_ids(job, tokenizer, {"messages": prompt}, completion[0])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return score(model, tokenizer, read, lambda _: None)

    return reward


def require_step(prompts: int, parameters: OnlineHyperparameters) -> None:
    """Refuse data that do not fill one step, on which a trainer would end without having trained.

    Raises:
        CannotTrain: names both counts and what to lower.

    """
    answers = parameters.batch_size * parameters.accumulation * processes.count()
    wanted = answers // parameters.generations
    if prompts < wanted:
        raise CannotTrain(
            f"train: {prompts} prompts are fewer than the {wanted} of one step (batch_size × "
            "accumulation × processes / generations); collect more, or lower batch_size or "
            "accumulation"
        )


def unique(path: Path) -> Iterator[Mapping[str, Any]]:
    """A line of each prompt, in the order of a file's lines."""
    seen = SpilledTable[bytes]()
    return (row for row in iterate_rows(path) if seen.add(digest(str(row["messages"]))))
