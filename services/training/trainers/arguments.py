"""Trainer arguments that all TRL trainers share, and resuming from the last whole checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback

from services.training.trainers import processes
from services.training.trainers.job import Progress, Stage, TrainingDiverged
from services.training.trainers.models import device, dtype
from shared.contracts.recipes import TrainerHyperparameters

RECENT = 10
"""Steps that the reported figures are means of: one step's batch says little."""
REPORTED = frozenset(
    {
        "loss",
        "train_runtime",
        "accuracy",
        "margin",
        "mean_token_accuracy",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
        "reward",
        "reward_std",
        "kl",
        "clip_fraction",
        "paired",
        "value_loss",
    }
)
CHECKPOINTS = 10
"""Checkpoints over a whole training, so a kill costs at most a tenth of it."""


def arguments(
    parameters: TrainerHyperparameters, folder: Path, *, rows: int, seed: int
) -> dict[str, Any]:
    """Keyword arguments for a TRL config. `rows` decides how often a checkpoint is written."""
    together = parameters.batch_size * parameters.accumulation * processes.count()
    updates = math.ceil(rows / together)
    steps = max(1, math.ceil(updates * parameters.epochs))
    return {
        "output_dir": str(folder),
        "num_train_epochs": parameters.epochs,
        "per_device_train_batch_size": parameters.batch_size,
        "gradient_accumulation_steps": parameters.accumulation,
        "learning_rate": parameters.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(steps * parameters.warmup),
        "weight_decay": parameters.weight_decay,
        "max_grad_norm": parameters.max_grad_norm,
        "max_length": parameters.max_length,
        "gradient_checkpointing": parameters.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": dtype().is_floating_point and str(dtype()) == "torch.bfloat16",
        "use_cpu": device() == "cpu",
        "dataloader_pin_memory": False,
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": max(1, math.ceil(steps / CHECKPOINTS)),
        "save_total_limit": 2,
    }


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole, or None.

    The trainer's state is written last, so a checkpoint with a readable one is whole. A copy of
    the reference adapter in it is deleted: transformers would load that copy alone and leave the
    trained adapter at its start; TRL makes the reference anew from the parent anyway.
    """
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append((int(state["global_step"]), path))
    if not found:
        return None
    newest = max(found)[1]
    shutil.rmtree(newest / "ref", ignore_errors=True)
    return str(newest)


class ReportProgress(TrainerCallback):
    """Writes each step to progress.jsonl and keeps the latest figures that were logged.

    Args:
        stage: Which stage trains.
        progress: Where steps are noted.
        after: Steps of the stage that follow the training's.

    """

    def __init__(self, stage: Stage, progress: Progress, *, after: int = 0) -> None:
        self._stage: Stage = stage
        self._progress = progress
        self._after = after
        self._recent: dict[str, deque[float]] = {}

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """Take up what was logged before the checkpoint that a killed training goes on from."""
        for logs in state.log_history:
            self._note(logs)

    def on_log(self, _: Any, state: Any, *__: Any, logs: dict[str, Any], **___: Any) -> None:
        """See TrainerCallback."""
        loss = logs.get("loss")
        if isinstance(loss, int | float) and not math.isfinite(loss):
            raise TrainingDiverged(
                f"{self._stage}: the loss is {loss} at step {state.global_step}: training diverged; "
                "lower learning_rate or max_grad_norm"
            )
        self._note(logs)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        """See TrainerCallback."""
        losses = self._recent.get("loss")
        loss = losses[-1] if losses else None
        self._progress.report(self._stage, state.global_step, state.max_steps + self._after, loss)

    def figures(self) -> dict[str, float]:
        """Means over the last steps of what a reader of a training wants to know."""
        return {
            name.removeprefix("train_").rpartition("/")[2]: sum(values) / len(values)
            for name, values in self._recent.items()
            if name in REPORTED
        }

    def _note(self, logs: Mapping[str, Any]) -> None:
        for name, value in logs.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._recent.setdefault(name, deque(maxlen=RECENT)).append(float(value))


def adapted(trainer: Any) -> Any:
    """The model with the trained adapter, which a rollout trainer keeps beside its value head."""
    return getattr(trainer, "policy", trainer).model


def save_adapter(trainer: Trainer, folder: Path) -> None:
    """Write the trained adapter to `<folder>/adapter`.

    A trainable PeftModel makes TRL add a frozen copy named `ref`; saving writes it too, to
    `ref/`, which must not be published.
    """
    place = folder / "adapter"
    if processes.sharded():
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(place))
    elif processes.rank() == 0:
        adapted(trainer).save_pretrained(str(place), selected_adapters=["default"])
    processes.wait()
    if processes.rank() == 0:
        shutil.rmtree(place / "ref", ignore_errors=True)


def train(trainer: Trainer, checkpoints: Path) -> None:
    """Train, from the last whole checkpoint on where there is one. Steps go to progress.jsonl."""
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
