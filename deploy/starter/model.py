"""Trains the starter model: a small Qwen2 with its own BPE, on the made-up shop's corpus.

Runs in the ML environment (`.venv-ml`), about 75 s on two cores; the result is cached under
`.cache/starter/<hash of corpus and configuration>` and reused. `MODEL=<hub id or path>` uses that
model as the base instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from deploy.starter import corpus

CACHE = Path(".cache/starter")
REPLY_TOKENS = 128
"""Most tokens of an answer, for clients and evaluation alike: room for nearly all demonstrations.
With less, users who like long answers would teach a version to run into the limit."""
TEMPERATURE = 0.8
DEMONSTRATIONS = 1200
PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text before BPE. Whoever loads a `qwen2` model splits like this, whatever the
tokenizer's file says, so it must be learned like this."""
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|system|>' + tools | tojson + '<|end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>' + {'name': call['function']['name'], "
    "'arguments': call['function']['arguments']} | tojson + '</tool_call>' }}"
    "{% endfor %}{{ '<|end|>' }}{% endgeneration %}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '<|user|><tool_response>' + message['content'] + '</tool_response><|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Role markers are single tokens, so a prompt's tokens are always a prefix of the conversation's.
Tool calls have Hermes' form, which vLLM's parser `hermes` reads."""


@dataclass(frozen=True)
class StarterConfig:
    """What decides the base model, beside the corpus; part of the cache key."""

    vocabulary: int = 1024
    layers: int = 4
    width: int = 192
    heads: int = 4
    feed_forward: int = 512
    context: int = 512
    steps: int = 240
    batch: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Starter:
    """Where the pieces lie. `model` is a path, or the hub id given as `MODEL`."""

    model: str
    demonstrations: Path

    def as_json(self) -> str:
        """The paths as one line, for the process that asked."""
        return json.dumps({"model": self.model, "demonstrations": str(self.demonstrations)})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Reads what `as_json` wrote."""
        found = json.loads(line)
        return cls(found["model"], Path(found["demonstrations"]))


def prepare(config: StarterConfig, cache: Path, model: str | None = None) -> Starter:
    """The starter for this configuration, trained now or taken from the cache.

    Args:
        config: Size and schedule of the small model.
        cache: Folder of all cached starters.
        model: A hub id or path to use as the base instead of training one.
    """
    key = hashlib.sha256(
        f"{corpus.fingerprint()}{asdict(config)}{CHAT_TEMPLATE}{QWEN_WORDS}{REPLY_TOKENS}".encode()
    )
    folder = cache / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    base, demonstrations = folder / "base", folder / "sft.jsonl"
    with (folder / "lock").open("w") as lock:
        # Two stacks that start at once train it once: the second waits and finds it made.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not demonstrations.exists():
            rows = corpus.conversations(DEMONSTRATIONS, corpus.SFT_MIX, config.seed + 1)
            corpus.write_sft(folder / "unfinished", rows)
            (folder / "unfinished").rename(demonstrations)
        if model is None and not base.exists():
            shutil.rmtree(folder / "unfinished", ignore_errors=True)
            train_base(config, folder / "unfinished")
            (folder / "unfinished").rename(base)
    return Starter(model or str(base.resolve()), demonstrations.resolve())


def train_base(config: StarterConfig, folder: Path) -> None:
    """Trains tokenizer and model from nothing and writes both to `folder` in Hugging Face form."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(config.seed)
    rows = corpus.conversations(config.steps * config.batch, corpus.BASE_MIX, config.seed)
    texts = [f"{USER}{prompt.text}{END}{ASSISTANT}{text}{END}" for prompt, text in rows]
    tokenizer = _tokenizer(texts, config)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            dtype="float32",
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=TEMPERATURE,
        max_new_tokens=REPLY_TOKENS,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / config.steps)),
    )
    model.train()
    started = time.monotonic()
    for step, batch in enumerate(_batches(texts, config), start=1):
        encoded = tokenizer(
            batch, padding=True, return_tensors="pt", max_length=160, truncation=True
        )
        labels = _answers_only(encoded["input_ids"], tokenizer)
        loss = model(**encoded, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 40 == 0 or step == config.steps:
            spent = time.monotonic() - started
            print(
                f"starter: step {step}/{config.steps}, loss {loss.item():.3f}, {spent:.0f} s",
                flush=True,
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    if any(loaded(text).input_ids != tokenizer(text).input_ids for text in texts[:200]):
        raise RuntimeError(f"{folder}: the tokenizer reads text differently once it is loaded")


def _answers_only(tokens: Any, tokenizer: Any) -> Any:
    """Labels that leave questions and padding out: this model is for answering alone."""
    begins = tokens == tokenizer.convert_tokens_to_ids(ASSISTANT)
    before = begins.cumsum(dim=1) == 0
    return tokens.masked_fill(before | begins | (tokens == tokenizer.pad_token_id), -100)


def _tokenizer(texts: list[str], config: StarterConfig) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=config.context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _batches(texts: list[str], config: StarterConfig) -> Iterator[list[str]]:
    # Texts of like length share a batch: half the padding, a third of the time.
    rng = random.Random(config.seed)
    pool = config.batch * 8
    for start in range(0, len(texts), pool):
        chunk = sorted(texts[start : start + pool], key=len)
        batches = [chunk[at : at + config.batch] for at in range(0, len(chunk), config.batch)]
        rng.shuffle(batches)
        yield from batches
