"""Rollout trainer: samples answers from the policy, scores them, and keeps them for its updates.

What PPO and online DPO share; TRL has neither for an adapter that continues its parent's. Policy
and reference are two adapters on one base: `default`, which is trained, and `ref`, the parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from trl.trainer.utils import selective_log_softmax, use_adapter

from services.training.trainers.models import (
    Messages,
    end_tokens,
    joined,
    prompt_ids,
    sampled,
)
from services.training.trainers.present_policy import PresentPolicy

VALUE_HEAD = "value_head.pt"


@dataclass
class RolloutConfig(TrainingArguments):
    """Trainer arguments, and how answers are sampled. Names are TRL's."""

    beta: float = 0.1
    num_generations: int = 4
    max_completion_length: int = 96
    temperature: float = 1.0
    updates: int = 1
    remove_unused_columns: bool | None = False


@dataclass(frozen=True)
class Rollouts:
    """Answers sampled from the policy; A is the longest one's tokens.

    Args:
        ids: Prompts, padded on the left, with their answers; shape (rows, prompt + A).
        mask: 1 where there is a token; shape as `ids`.
        answers: 1 where an answer has a token, its end included; shape (rows, A).
        logprobs: Of each answer's tokens when they were sampled; shape (rows, A).
        reference: The same by the parent; shape (rows, A).
        values: Of the value head before each token, zeros without one; shape (rows, A).
        scores: Of whole answers, by the reward model; shape (rows,).

    """

    ids: Tensor
    mask: Tensor
    answers: Tensor
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    scores: Tensor

    def kl(self) -> Tensor:
        """Estimate of KL(policy ‖ parent) at each token, in nats, never negative (Schulman 2020)."""
        gap = self.reference - self.logprobs
        return gap.exp() - gap - 1


class Policy(nn.Module):
    """Policy and value head as one module, so that a gradient of either is shared by all processes."""

    def __init__(self, model: Any, *, temperature: float, values: bool) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.value_head = None
        if values:
            width = model.config.get_text_config().hidden_size
            self.value_head = nn.Linear(width, 1, device=model.device, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """See PreTrainedModel."""
        self.model.gradient_checkpointing_enable(**settings)

    def forward(self, ids: Tensor, mask: Tensor, answer: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the last `answer` tokens and values before them; (rows, answer)."""
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=answer + 1,
            output_hidden_states=self.value_head is not None,
            use_cache=False,
        )
        logits = out.logits[:, :-1].float() / self.temperature
        logprobs = selective_log_softmax(logits, ids[:, -answer:])
        if self.value_head is None:
            return logprobs, torch.zeros_like(logprobs)
        hidden = out.hidden_states[-1][:, -answer - 1 : -1]
        return logprobs, self.value_head(hidden.float()).squeeze(-1)


class RolloutTrainer(Trainer):
    """Trains on rollouts of the present policy; a subclass says by which loss.

    Args:
        model: The base with the parent's adapter, trainable, as `default`.
        processing_class: The base's tokenizer.
        reward_funcs: One function that scores prompts with completions, as TRL takes it.
        args: How to sample and to train.
        train_dataset: Rows with a `prompt` of turns.
        callbacks: See Trainer.

    """

    values = False
    """Whether the loss needs a value head."""

    def __init__(
        self,
        *,
        model: Any,
        processing_class: Any,
        reward_funcs: Sequence[Callable[..., list[float]]],
        args: RolloutConfig,
        train_dataset: Any,
        callbacks: list[Any],
    ) -> None:
        model.add_adapter("ref", model.peft_config["default"])
        for name, weight in model.named_parameters():
            if ".default." in name:
                model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(weight.data)
        model.set_adapter("default")
        policy = Policy(model, temperature=args.temperature, values=self.values)
        super().__init__(
            model=policy,
            processing_class=processing_class,
            args=args,
            train_dataset=train_dataset,
            data_collator=list,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = False
        (self._reward,) = reward_funcs
        self.vllm_generation: PresentPolicy | None = None
        """What writes answers in place of this process; the name is that of TRL's trainers."""
        self._ends = end_tokens(model.generation_config, processing_class)
        self._kept: list[Rollouts] = []
        self._seen = 0
        self._figures: dict[str, list[float]] = {}

    @property
    def policy(self) -> Policy:
        """The module that is trained, without what distributed training puts around it."""
        return self.accelerator.unwrap_model(self.model)

    def loss(self, policy: nn.Module, rollouts: Rollouts) -> Tensor:
        """The loss of one batch, by the policy of now."""
        raise NotImplementedError

    def note(self, **figures: Tensor) -> None:
        """Keep figures of this batch for the next log line."""
        for name, value in figures.items():
            self._figures.setdefault(name, []).append(float(value.detach().float().mean()))

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """See Trainer. Each batch comes `updates` times and is sampled the first time only."""
        accumulation = self.args.gradient_accumulation_steps
        place = self._seen % (accumulation * self.args.updates)
        self._seen += 1
        if place == 0:
            self._kept.clear()
        if place < accumulation:
            self._kept.append(self._sampled([row["prompt"] for row in inputs]))
        return self.loss(model, self._kept[place % accumulation])

    @torch.no_grad()
    def _sampled(self, prompts: Sequence[Messages]) -> Rollouts:
        policy, tokenizer = self.policy, self.processing_class
        policy.eval()
        asked = [prompt_ids(tokenizer, prompt) for prompt in prompts]
        if self.vllm_generation is None:
            whole, mask = sampled(
                policy.model,
                tokenizer,
                asked,
                max_new_tokens=self.args.max_completion_length,
                temperature=self.args.temperature,
                # A base's own penalty would make the samples another distribution than the policy's.
                repetition_penalty=1.0,
            )
        else:
            _, written, _, _ = self.vllm_generation.generate(asked)
            whole, mask = joined(asked, written, tokenizer.pad_token_id)
        said = whole[:, mask.shape[1] :]
        ended = torch.isin(said, torch.tensor(sorted(self._ends), device=said.device)).long()
        answers = (ended.cumsum(-1) - ended == 0).long()
        full = torch.cat([mask, answers], dim=1)
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        turns = [[{"role": "assistant", "content": text}] for text in texts]
        scores = torch.tensor(self._reward(prompts, turns), device=whole.device)
        if policy.value_head is not None and self._seen == 1 and not self.state.global_step:
            # Without it the first advantages would be the scores' arbitrary level, not their gain.
            policy.value_head.bias.fill_(self.accelerator.reduce(scores.mean(), "mean"))
        logprobs, values = policy(whole, full, said.shape[1])
        with use_adapter(policy.model, "ref"):
            reference, _ = policy(whole, full, said.shape[1])
        policy.train()
        rollouts = Rollouts(whole, full, answers, logprobs, reference, values, scores)
        self.note(
            reward=scores,
            reward_std=scores.std(correction=0),
            kl=masked_mean(rollouts.kl(), answers),
        )
        return rollouts

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        """See Trainer. Adds the means of what was noted since the last line."""
        means = {name: sum(kept) / len(kept) for name, kept in self._figures.items()}
        self._figures.clear()
        super().log(logs | means, *args, **named)

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        args = self.args
        answers = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return GroupSampler(
            len(self.train_dataset),
            prompts=answers // args.num_generations,
            generations=args.num_generations,
            updates=args.updates,
            seed=args.seed,
        )

    def _save(self, output_dir: str | None = None, *_: Any, **__: Any) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.policy.model.save_pretrained(str(folder), selected_adapters=["default"])
        if self.policy.value_head is not None:
            torch.save(self.policy.value_head.state_dict(), folder / VALUE_HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any, **__: Any) -> None:
        self.policy.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
        if self.policy.value_head is not None:
            head = torch.load(Path(resume_from_checkpoint) / VALUE_HEAD, weights_only=True)
            self.policy.value_head.load_state_dict(head)


class GroupSampler(Sampler[int]):
    """Whole steps of prompts: each prompt `generations` times, each step `updates` times.

    An epoch's order depends on seed and epoch alone, so a resumed run reads on in the same order.
    """

    def __init__(
        self, rows: int, *, prompts: int, generations: int, updates: int, seed: int
    ) -> None:
        self._rows = rows
        self._prompts = prompts
        self._generations = generations
        self._updates = updates
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is read next."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Rows that an epoch reads."""
        steps = self._rows // self._prompts
        return steps * self._prompts * self._generations * self._updates

    def __iter__(self) -> Iterator[int]:
        """Indices of prompts."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._rows, generator=generator).tolist()
        for start in range(0, self._rows - self._prompts + 1, self._prompts):
            step = [
                index
                for index in order[start : start + self._prompts]
                for _ in range(self._generations)
            ]
            for _ in range(self._updates):
                yield from step


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the places where the mask is 1."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
