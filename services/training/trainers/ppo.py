"""Proximal policy optimisation (Schulman et al. 2017) with a value head against the reward model.

A token's reward is the KL penalty to the parent, `-beta · (log policy - log parent)`; an answer's
last token also gets the answer's score (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from services.training.trainers import online
from services.training.trainers.job import Progress, TrainerJob
from services.training.trainers.rollouts import (
    RolloutConfig,
    Rollouts,
    RolloutTrainer,
    masked_mean,
)
from shared.contracts.recipes import PpoHyperparameters

GAMMA = 1.0
"""Discount of later tokens: an answer is judged as a whole."""


@dataclass
class PpoConfig(RolloutConfig):
    """Arguments of PPO beside those of sampling."""

    epsilon: float = 0.2
    gae_lambda: float = 0.95
    value_weight: float = 0.1


class PpoTrainer(RolloutTrainer):
    """Clipped policy gradient with generalised advantage estimation."""

    values = True

    def loss(self, policy: nn.Module, rollouts: Rollouts) -> Tensor:
        """See RolloutTrainer."""
        args, mask = self.args, rollouts.answers
        rewards = token_rewards(rollouts, beta=args.beta)
        advantages = estimated_advantages(rewards, rollouts.values, mask, lam=args.gae_lambda)
        returns = advantages + rollouts.values
        advantages = normalised(advantages, mask)
        logprobs, values = policy(rollouts.ids, rollouts.mask, mask.shape[1])
        ratio = (logprobs - rollouts.logprobs).exp()
        clipped = ratio.clamp(1 - args.epsilon, 1 + args.epsilon)
        gain = torch.minimum(ratio * advantages, clipped * advantages)
        near = rollouts.values + (values - rollouts.values).clamp(-args.epsilon, args.epsilon)
        misses = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
        self.note(
            value_loss=masked_mean(misses, mask),
            clip_fraction=masked_mean((ratio != clipped).float(), mask),
        )
        return masked_mean(args.value_weight * misses - gain, mask)


def token_rewards(rollouts: Rollouts, *, beta: float) -> Tensor:
    """The KL penalty at each token, and the score at each answer's last one; shape (rows, A)."""
    rewards = -beta * (rollouts.logprobs - rollouts.reference) * rollouts.answers
    last = rollouts.answers.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(1, last, rollouts.scores[:, None].to(rewards))


def estimated_advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016), zero after an answer's end.

    Args:
        rewards: Of each token; shape (rows, A).
        values: Expected before each token; shape (rows, A).
        mask: 1 where an answer has a token; shape (rows, A).
        lam: 0 trusts the values, 1 trusts the rewards alone.

    """
    found = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    after = torch.zeros_like(later)
    for place in reversed(range(rewards.shape[1])):
        here = mask[:, place]
        surprise = rewards[:, place] + GAMMA * after - values[:, place]
        later = (surprise + GAMMA * lam * later) * here
        after = values[:, place] * here
        found[:, place] = later
    return found


def normalised(advantages: Tensor, mask: Tensor) -> Tensor:
    """The same with mean 0 and deviation 1 over all tokens, zero elsewhere."""
    mean = masked_mean(advantages, mask)
    deviation = masked_mean((advantages - mean) ** 2, mask).sqrt()
    return (advantages - mean) / (deviation + 1e-8) * mask


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """See `online.run`."""
    own = job.trained
    assert isinstance(own, PpoHyperparameters)
    return online.run(
        job,
        folder,
        progress,
        "ppo",
        PpoTrainer,
        PpoConfig,
        epsilon=own.clip,
        updates=own.updates,
        gae_lambda=own.gae_lambda,
        value_weight=own.value_weight,
    )
