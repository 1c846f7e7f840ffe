"""Online DPO (Guo et al. 2024): sample, score, pair, train, in each step.

The pair of a prompt is its best and its worst answer by the reward model; the loss is DPO's
sigmoid with the parent as reference. Where all of a prompt's scores are equal there is no pair.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.training.trainers import online
from services.training.trainers.job import Progress, TrainerJob
from services.training.trainers.rollouts import RolloutConfig, Rollouts, RolloutTrainer


class OnlineDpoTrainer(RolloutTrainer):
    """DPO on pairs of answers that the present policy wrote."""

    def loss(self, policy: nn.Module, rollouts: Rollouts) -> Tensor:
        """See RolloutTrainer."""
        logprobs, _ = policy(rollouts.ids, rollouts.mask, rollouts.answers.shape[1])
        gains = ((logprobs - rollouts.reference) * rollouts.answers).sum(-1)
        best, worst, differ = pairs(rollouts.scores, self.args.num_generations)
        margins = self.args.beta * (gains[best] - gains[worst])
        losses = -functional.logsigmoid(margins) * differ
        self.note(margin=margins, accuracy=(margins > 0).float(), paired=differ)
        return losses.sum() / differ.sum().clamp(min=1)


def pairs(scores: Tensor, generations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the best and of the worst answer of each prompt, and 1 where their scores differ.

    Args:
        scores: Of `generations` answers to each prompt, one prompt after the other.
        generations: Answers a prompt.

    """
    groups = scores.view(-1, generations)
    first = torch.arange(len(groups), device=scores.device) * generations
    best, worst = groups.argmax(-1), groups.argmin(-1)
    differ = (groups.amax(-1) > groups.amin(-1)).to(scores.dtype)
    return first + best, first + worst, differ


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """See `online.run`."""
    return online.run(job, folder, progress, "online_dpo", OnlineDpoTrainer, RolloutConfig)
