"""Answers of an evaluation's arms: by the model in this process, or by vLLM in one of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.training.trainers.generation import EnginePlan, by_vllm, rank_of, started, told
from services.training.trainers.job import Progress, Stage, TrainerJob
from services.training.trainers.memory import release
from services.training.trainers.models import (
    by_tokens,
    dtype,
    end_tokens,
    generation_config,
    positions,
    sampled,
    set_seeds,
)

GENERATION_TOKENS = 65_536
"""Most tokens of the answers that are written at a time, with their prompts and padding."""

Note = Callable[[int], None]
"""Hears how many steps were done."""


@dataclass(frozen=True)
class Answers:
    """What one arm wrote, one entry a prompt."""

    texts: list[str]
    lengths: list[int]
    ended: list[bool]


def answers(
    job: TrainerJob,
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Sequence[int]],
    note: Note,
) -> Answers:
    """What a model answers to prompts, given as token ids, by the job's evaluation settings."""
    spaces = [len(tokens) + job.evaluation.max_new_tokens for tokens in encoded]
    written: list[list[int]] = [[]] * len(encoded)
    set_seeds(job.seed)
    for batch in by_tokens(spaces, tokens=GENERATION_TOKENS, rows=job.evaluation.batch_size):
        whole, mask = sampled(
            model,
            tokenizer,
            [encoded[i] for i in batch],
            max_new_tokens=job.evaluation.max_new_tokens,
            temperature=job.evaluation.temperature,
        )
        for index, tokens in zip(batch, whole[:, mask.shape[1] :].tolist(), strict=True):
            written[index] = tokens
        note(len(batch))
    return _read(tokenizer, written, end_tokens(model.generation_config, tokenizer))


def by_engine(
    job: TrainerJob,
    folder: Path,
    tokenizer: Any,
    encoded: Sequence[Sequence[int]],
    adapters: Mapping[str, str],
    progress: Progress,
    stage: Stage,
    note: Note,
) -> dict[str, Answers]:
    """What vLLM answers to prompts, by arm; none where answers are not written by it.

    Its engine has ended when this returns.

    Args:
        job: Whose evaluation settings hold.
        folder: The attempt's.
        tokenizer: The base's.
        encoded: Token ids of each prompt.
        adapters: Folder of each arm's adapter; empty: the base.
        progress: Where the engine's start is noted.
        stage: Whose answers they are.
        note: Hears how many answers were written.

    """
    gpu = torch.cuda.is_available()
    if not encoded or not by_vllm(job.generation.engine, gpu=gpu):
        return {}
    named = [adapter for adapter in adapters.values() if adapter]
    settings = generation_config(job.base)
    ends = end_tokens(settings, tokenizer)
    plan = EnginePlan(
        base=job.base,
        dtype=str(dtype()).removeprefix("torch."),
        rank=max(map(rank_of, named), default=1),
        adapters=len(named),
        max_length=min(positions(job.base), max(map(len, encoded)) + job.evaluation.max_new_tokens),
        gpu=gpu,
    )
    release()
    with started(plan, job.generation, folder, told(progress, stage)) as engine:
        return {
            arm: _read(
                tokenizer,
                engine.write(
                    encoded,
                    adapter=adapter,
                    seed=str(job.seed),
                    max_new_tokens=job.evaluation.max_new_tokens,
                    temperature=job.evaluation.temperature,
                    ends=ends,
                    repetition_penalty=settings.repetition_penalty or 1.0,
                    note=note,
                ).ids,
                ends,
            )
            for arm, adapter in adapters.items()
        }


def _read(tokenizer: Any, written: Sequence[Sequence[int]], ends: set[int]) -> Answers:
    """Answers up to the token that ended each, as texts."""
    found = Answers([], [], [])
    for tokens in written:
        length = next((n for n, token in enumerate(tokens) if token in ends), None)
        kept = tokens[:length]
        found.texts.append(tokenizer.decode(kept, skip_special_tokens=True).strip())
        found.lengths.append(len(kept))
        found.ended.append(length is not None)
    return found
