"""Answers of the policy that is trained, by an engine that is given its adapter once a step.

Has the methods that TRL's trainers ask of their own vLLM, which merges each step's adapter into the
base's weights and copies all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.training.trainers import processes
from services.training.trainers.generation import AnswerEngine, WrittenAnswers


class PresentPolicy:
    """What the adapter of now answers.

    Args:
        engine: Writes the answers; this object alone asks it.
        model: The base with the adapter `default`, which is trained.
        folder: The attempt's; the adapter lies there while the engine reads it.
        step: Weight updates so far; the adapter changes by them alone.
        seed: Of the training.
        sampling: What `AnswerEngine.write` takes beside prompts, adapter and seed.

    """

    def __init__(
        self,
        engine: AnswerEngine,
        model: Any,
        folder: Path,
        *,
        step: Callable[[], int],
        seed: int,
        sampling: dict[str, Any],
    ) -> None:
        self._engine = engine
        self._model = model
        self._folder = folder / f"policy-{processes.rank()}"
        self._step = step
        self._seed = seed
        self._sampling = sampling
        self._given: Path | None = None
        self._asked = 0
        shutil.rmtree(self._folder, ignore_errors=True)

    def sync_weights(self) -> None:
        """Give the engine the adapter of this step, unless it has it."""
        now = self._folder / str(self._step())
        if now == self._given:
            return
        self._model.save_pretrained(str(now), selected_adapters=["default"])
        if self._given is not None:
            self._engine.forget(str(self._given))
            shutil.rmtree(self._given)
        self._given, self._asked = now, 0

    def write(self, prompts: Sequence[Sequence[int]], seed: str) -> WrittenAnswers:
        """Answers of the adapter of now, the same ones for the same seed and step."""
        self.sync_weights()
        return self._engine.write(prompts, adapter=str(self._given), seed=seed, **self._sampling)

    def generate(
        self, prompts: Sequence[Sequence[int]], *_: Any, **__: Any
    ) -> tuple[Sequence[Sequence[int]], list[list[int]], list[list[list[float]]], None]:
        """What TRL asks: prompts, their answers, log-probabilities of the tokens; an answer each.

        Chance follows from the step, so a training that was killed draws the same again.
        """
        self.sync_weights()
        self._asked += 1
        seed = f"{self._seed}/{processes.rank()}/{self._step()}/{self._asked}"
        found = self.write(prompts, seed)
        return prompts, found.ids, [[[one] for one in row] for row in found.logprobs], None
