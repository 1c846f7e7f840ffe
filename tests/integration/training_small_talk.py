"""`python training_small_talk.py <folder>` in the ML environment: a base that talks, in ten seconds.

A Qwen2 of 2 layers × 64, trained from scratch on answers that are polite in half of their places.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from training_tiny_model import SPECIAL, in_turns, tiny_qwen2

from tests.support.small_talk import PROMPTS, answer

STEPS, ROWS = 300, 32
WIDTH = 64
"""Half of it hardly moves by a LoRA: the engine could not tell a version from its base."""
LEARNING_RATE = 4e-3
VOCABULARY = 512


def main(folder: Path) -> None:
    """Train tokenizer and model, and write them in Hugging Face form."""
    torch.set_num_threads(1)
    chance = random.Random(0)
    talks = [(prompt, answer(prompt, 0.5, chance)) for prompt in PROMPTS for _ in range(3)]
    tokenizer = tokenizer_of([text for talk in talks for text in talk])
    turns = ("user", "assistant")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in zip(turns, talk, strict=True)],
            tokenize=False,
        )
        for talk in talks
    ]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    model = tiny_qwen2(len(tokenizer), WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=STEPS
    )
    for _ in range(STEPS):
        batch = chance.choices(rows, k=ROWS)
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        labels = ids.masked_fill(ids == 0, -100)
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def tokenizer_of(texts: list[str]) -> Any:
    """Byte-pair encoding that has the language's words as tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return in_turns(core)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
