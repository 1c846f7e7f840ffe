"""Loading models and tokenizers, and rendering conversations, the same way in every stage."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from services.training.trainers import loads, processes
from services.training.trainers.job import CannotTrain, TrainerJob
from services.training.trainers.rows import TURNS, RowFiles
from shared.contracts.conversation import template_turn
from shared.contracts.recipes import LoraHyperparameters, TrainerHyperparameters

Messages = Sequence[Mapping[str, Any]]
"""Turns in OpenAI's form, as datasets hold them."""
REASONING = "reasoning_content"
"""Field of a turn with what the model thought before its answer."""
MAX_CAUSE = 500
"""Characters of a library's own words that are kept."""


@contextlib.contextmanager
def loading(base: str) -> Iterator[None]:
    """Tell of a base that is loaded, and of one that cannot be which it is and what to do.

    Raises:
        CannotTrain: in place of the library's error.

    """
    try:
        with loads.told(f"loading {base}"):
            yield
    except (OSError, ValueError) as error:
        raise CannotTrain(
            f"base: {base} does not load: {str(error)[:MAX_CAUSE]}; give a folder with model and "
            "tokenizer, or a hub id that this machine reaches (HF_HOME, HF_TOKEN)"
        ) from error


def load_tokenizer(base: str) -> Any:
    """The base's tokenizer, with a padding token whatever the base lacks.

    Raises:
        CannotTrain: it does not load, or it has no chat template.

    """
    with loading(base):
        tokenizer = AutoTokenizer.from_pretrained(base)
    if not tokenizer.chat_template:
        raise CannotTrain(
            f"base: the tokenizer of {base} has no chat template, so no conversation can be "
            "written; take its instruct variant, or put a chat_template.jinja into its folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(base: str, *, four_bit: bool = False) -> Any:
    """The base as a causal model: float32 on a CPU, bfloat16 on a GPU that has it.

    A base of which each process holds a part stays where it is, for accelerate to divide.

    Args:
        base: Hub id or path.
        four_bit: Frozen weights in NF4 (Dettmers et al. 2023), for training alone.

    Raises:
        CannotTrain: it does not load, or four bits are asked for and bitsandbytes is not installed.

    """
    if four_bit:
        return _load_in_four_bits(base)
    with loading(base):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype())
        return model if processes.sharded() else model.to(device())


def _load_in_four_bits(base: str) -> Any:
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype(),
    )
    try:
        with loading(base):
            model = AutoModelForCausalLM.from_pretrained(
                base, dtype=dtype(), quantization_config=settings, device_map={"": device()}
            )
    except ImportError as error:
        raise CannotTrain(
            "four_bit: bitsandbytes is not installed in the ML environment; install it, or leave "
            f"four_bit out ({error})"
        ) from None
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def load_adapter(base: Any, folder: str | Path, *, name: str = "default", trainable: bool) -> Any:
    """The base with an adapter on it."""
    return PeftModel.from_pretrained(base, str(folder), adapter_name=name, is_trainable=trainable)


def lora(
    parameters: LoraHyperparameters, *, task: str, modules_to_save: list[str] | None = None
) -> Any:
    """A LoRA on every linear layer but the output head, which vLLM would not serve."""
    return LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,
        lora_dropout=parameters.dropout,
        target_modules="all-linear",
        task_type=task,
        modules_to_save=modules_to_save,
    )


def start_of(job: TrainerJob, parameters: TrainerHyperparameters) -> Any:
    """What a method that goes on from its parent trains: the parent's adapter, or a new one.

    A new one changes nothing yet, so the reference model that TRL copies from it is the base.
    """
    base = load_base(job.base, four_bit=parameters.four_bit)
    if job.parent_adapter:
        return load_adapter(base, job.parent_adapter, trainable=True)
    return get_peft_model(base, lora(parameters.lora, task="CAUSAL_LM"))


def device() -> str:
    """Where to compute."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def dtype() -> torch.dtype:
    """What to compute in."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if on_gpu else torch.float32


def set_seeds(seed: int) -> None:
    """Fix every source of chance of this process."""
    random.seed(seed)
    torch.manual_seed(seed)


def prompt_ids(tokenizer: Any, messages: Messages, tools: str = "") -> list[int]:
    """A prompt as the model is asked it: the assistant's turn is open.

    Args:
        tokenizer: The base's, with its chat template.
        messages: The turns.
        tools: Definitions of tools as JSON, as a dataset's line has them.

    """
    text = tokenizer.apply_chat_template(
        [template_turn(turn) for turn in messages],
        tools=json.loads(tools) if tools else None,
        tokenize=False,
        add_generation_prompt=True,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def conversation_ids(
    tokenizer: Any, messages: Messages, answer: str | Mapping[str, Any], tools: str = ""
) -> list[int]:
    """A prompt with its answer, a text or a turn, the end of the turn included."""
    turn = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    text = tokenizer.apply_chat_template(
        [template_turn(turn) for turn in (*messages, turn)],
        tools=json.loads(tools) if tools else None,
        tokenize=False,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_of(row: Mapping[str, Any], side: str, *, reasoning: bool = False) -> dict[str, Any]:
    """The answer of a dataset's line as a turn; side is `chosen`, `rejected` or `answer`.

    What the model thought before it is in it only where `reasoning` says so.
    """
    turn = row.get(f"{side}_turn") or {"role": "assistant", "content": row[side]}
    return {name: turn[name] for name in turn if reasoning or name != REASONING}


def turns_before(row: Mapping[str, Any], side: str) -> Messages:
    """The prompt of an answer; a pair of thumbs has one of its own for the rejected answer."""
    return row.get(f"{side}_messages", row["messages"])


def conversations(
    rows: Iterable[Mapping[str, Any]],
    sides: Mapping[str, str],
    files: RowFiles,
    flags: Sequence[str] = (),
    *,
    reasoning: bool = False,
) -> Dataset:
    """Lines of a dataset as TRL's conversational form with tools, mapped from disk.

    Args:
        rows: Lines of a dataset, which are read once.
        sides: TRL's column for each answer that a line has.
        files: Where they lie.
        flags: Names of flags, which are false where a line lacks them.
        reasoning: Whether answers have what the model thought before them.

    """
    columns = {"prompt": TURNS, **dict.fromkeys(sides.values(), TURNS), "tools": Value("string")}
    return files.mapped(
        (
            {
                "prompt": [template_turn(turn) for turn in row["messages"]],
                **{
                    to: [template_turn(answer_of(row, side, reasoning=reasoning))]
                    for side, to in sides.items()
                },
                "tools": row.get("tools"),
                **{flag: row.get(flag, False) for flag in flags},
            }
            for row in rows
        ),
        Features({**columns, **dict.fromkeys(flags, Value("bool"))}),
    )


def generation_config(base: str) -> GenerationConfig:
    """How the base's own settings have answers written, as a loaded model has it."""
    with loading(base):
        try:
            return GenerationConfig.from_pretrained(base)
        except OSError:
            return GenerationConfig.from_model_config(AutoConfig.from_pretrained(base))


def positions(base: str) -> int:
    """Tokens that the base can tell apart; very many where it names no bound."""
    with loading(base):
        config = AutoConfig.from_pretrained(base)
    return int(getattr(config, "max_position_embeddings", 0) or 2**31)


def end_tokens(settings: GenerationConfig, tokenizer: Any) -> set[int]:
    """Tokens that end a turn: the tokenizer's and those the base's own settings name."""
    configured = settings.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}


def without_end(ids: list[int], ends: set[int]) -> list[int]:
    """An answer's tokens before the end-of-turn token, which a truncated generation did not make."""
    last = max((place for place, token in enumerate(ids) if token in ends), default=len(ids))
    return ids[:last]


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Any, Any]:
    """Token ids as one tensor with its attention mask, on the device; shape (rows, longest)."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, span] = torch.tensor(row, dtype=torch.long)
        mask[index, span] = 1
    return ids.to(device()), mask.to(device())


def joined(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int
) -> tuple[Any, Any]:
    """Prompts with their answers as `sampled` returns them."""
    ids, mask = padded(prompts, pad, left=True)
    said, _ = padded(answers, pad, left=False)
    return torch.cat([ids, said], dim=1), mask


@torch.no_grad()
def sampled(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    **settings: Any,
) -> tuple[Any, Any]:
    """Answers drawn from the model's whole distribution, the likeliest ones at temperature 0.

    Args:
        model: A causal model.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        max_new_tokens: Most tokens of an answer.
        temperature: Of sampling.
        settings: Whatever else `generate` takes.

    Returns:
        Token ids of the prompts, padded on the left, with their answers, padded on the right;
        shape (rows, prompt + answer). The prompts' attention mask; shape (rows, prompt).

    """
    ids, mask = padded(prompts, tokenizer.pad_token_id, left=True)
    chance: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        chance = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    whole = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_tokens(model.generation_config, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        **chance,
        **settings,
    )
    return whole, mask


def by_tokens(lengths: Sequence[int], *, tokens: int, rows: int | None = None) -> list[list[int]]:
    """Batches of indices, shortest first, that stay small once padded.

    Args:
        lengths: Tokens of each row.
        tokens: Most tokens of a batch, padding included; a single row may have more.
        rows: Most rows of a batch, where that is bounded too.

    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        size = len(batches[-1]) + 1 if batches else 0
        if not size or size * lengths[index] > tokens or (rows and size > rows):
            batches.append([])
        batches[-1].append(index)
    return batches
