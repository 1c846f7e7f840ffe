"""Reward monitor: the raised score against the independent judge's while a policy is trained.

On the same prompts, with the same chance, both score the answers of now; where they part the
training ends and the checkpoint is kept that the judge liked best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from services.training.trainers import processes
from services.training.trainers.job import read_rows, write_rows
from services.training.trainers.models import Messages, prompt_ids, sampled
from services.training.trainers.overoptimisation import Check, best, mean, parted
from services.training.trainers.present_policy import PresentPolicy

CHECKS = 10
"""Checks over a whole training."""
PROMPTS = 32
"""Prompts that are asked at each check; they are trained on, so the evaluation's stay unseen."""

Score = Callable[[Sequence[Messages], Sequence[Messages]], list[float]]
"""Scores completions of prompts, as TRL calls it."""


class RewardMonitor(TrainerCallback):
    """Ends a training whose proxy and judge part; notes each check in `monitor.jsonl`.

    Args:
        folder: The attempt's folder.
        tokenizer: The base's.
        prompts: Turns of each prompt that is asked.
        proxy: The score that the method raises.
        judge: The independent one.
        sampling: `max_new_tokens` and `temperature`.
        seed: Of the samples, the same at each check.

    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        prompts: Sequence[Messages],
        *,
        proxy: Score,
        judge: Score,
        sampling: dict[str, Any],
        seed: int,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._prompts = prompts[:PROMPTS]
        self._proxy = proxy
        self._judge = judge
        self._sampling = sampling
        self._seed = seed
        self._history: list[Check] = []
        self.stopped = False
        self.model: Any = None
        """The model with the trained adapter; the trainer is made after its callbacks."""
        self.policy: PresentPolicy | None = None
        """What writes answers in place of this process."""

    def on_train_begin(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        """See TrainerCallback. What was noted before a kill counts up to the checkpoint."""
        self._history = [
            check
            for check in (Check(**row) for row in read_rows(self._folder / "monitor.jsonl"))
            if state.global_step and check.step <= state.global_step
        ]
        if not self._history:
            self._check(0)
        self._stop_where_parted(control)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        """See TrainerCallback."""
        if state.global_step % max(1, state.max_steps // CHECKS):
            return
        self._check(state.global_step)
        self._stop_where_parted(control)

    def restore_best(self) -> None:
        """Replace the adapter by the one that the judge liked best, where the training was ended.

        Its files stay: a run that is killed before its result is written needs them again.
        """
        if self.stopped:
            self.model.load_adapter(str(self._folder / "best"), "default", is_trainable=True)

    def figures(self) -> dict[str, float]:
        """What the record says of it: gains since the start by both scores, of what is kept."""
        first, *trained = self._history
        if not trained:
            return {"monitor_checks": 0.0}
        held = best(trained) if self.stopped else trained[-1]
        return {
            "monitor_checks": float(len(trained)),
            "monitor_stopped": float(self.stopped),
            "monitor_step": float(held.step),
            "monitor_judge_gain": mean(held.judge) - mean(first.judge),
            "monitor_proxy_gain": mean(held.proxy) - mean(first.proxy),
        }

    def _stop_where_parted(self, control: Any) -> None:
        if parted(self._history):
            self.stopped = control.should_training_stop = True

    def _sampled(self, asked: Sequence[Sequence[int]]) -> Any:
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            whole, mask = sampled(self.model, self._tokenizer, asked, **self._sampling)
        self.model.train(was_training)
        return whole[:, mask.shape[1] :]

    def _check(self, step: int) -> None:
        asked = [prompt_ids(self._tokenizer, prompt) for prompt in self._prompts]
        if self.policy is None:
            written = self._sampled(asked)
        else:
            written = self.policy.write(asked, str(self._seed)).ids
        said = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        turns = [[{"role": "assistant", "content": text}] for text in said]
        check = Check(step, self._proxy(self._prompts, turns), self._judge(self._prompts, turns))
        # A process that stopped by another rounding would leave the others waiting for it.
        check = processes.of_first(check)
        self._history.append(check)
        if processes.rank():
            return
        write_rows(self._folder / "monitor.jsonl", map(asdict, self._history))
        if step and best(self._history[1:]) is check:
            self.model.save_pretrained(str(self._folder / "best"), selected_adapters=["default"])
