"""`python -m services.inference.scoring`: scores answers by a reward model, in the ML environment.

Reads one JSON object a line from standard input and answers each with one line: `{"base", "revision",
"adapter", "max_length", "rows": [{"messages", "completion"}]}` becomes `{"scores", "uncertainties"}` or
`{"error"}`. It ends when its input ends, so it never outlives the service. The last reward model stays loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH_ROWS = 32
BATCH_TOKENS = 8192
"""Most rows, and most padded tokens, of one pass."""


class RewardModel:
    """A base with score heads and a LoRA, ready to score."""

    def __init__(self, base: str, revision: str, adapter: str) -> None:
        cuda = torch.cuda.is_available()
        self._device = "cuda" if cuda else "cpu"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base, revision=revision)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            base,
            revision=revision,
            num_labels=heads_of(adapter),
            dtype=torch.bfloat16 if cuda else torch.float32,
        )
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = PeftModel.from_pretrained(model.to(self._device), adapter).eval()

    @torch.no_grad()
    def score(
        self, rows: Sequence[dict[str, Any]], max_length: int
    ) -> tuple[list[float], list[float]]:
        """A score for each row, the mean of the heads, and their standard deviation.

        Higher is better, and only differences mean something. One head has no deviations.
        """
        read = [self._ids(row)[:max_length] for row in rows]
        scores = torch.zeros(len(rows), self._model.config.num_labels)
        for batch in batches([len(ids) for ids in read]):
            width = max(len(read[index]) for index in batch)
            pad = self._tokenizer.pad_token_id
            ids = torch.tensor([read[i] + [pad] * (width - len(read[i])) for i in batch])
            mask = torch.tensor([[1] * len(read[i]) + [0] * (width - len(read[i])) for i in batch])
            logits = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits
            scores[batch] = logits.float().cpu()
        several = scores.shape[1] > 1
        return scores.mean(1).tolist(), scores.std(1, correction=0).tolist() if several else []

    def _ids(self, row: dict[str, Any]) -> list[int]:
        turns = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def heads_of(adapter: str) -> int:
    """How many score heads a reward model was written with."""
    with safe_open(Path(adapter) / "adapter_model.safetensors", framework="pt") as file:
        name = next(name for name in file.keys() if name.endswith("score.weight"))  # noqa: SIM118
        return int(file.get_slice(name).get_shape()[0])


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in batches, shortest first, that stay small once padded."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        size = len(found[-1]) + 1 if found else 0
        if not size or size > BATCH_ROWS or size * lengths[index] > BATCH_TOKENS:
            found.append([])
        found[-1].append(index)
    return found


def main() -> None:
    """Answer lines until there are no more."""
    # Whatever a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    loaded: tuple[tuple[str, str, str], RewardModel] | None = None
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        name = asked["base"], asked["revision"], asked["adapter"]
        answer: dict[str, Any]
        try:
            if loaded is None or loaded[0] != name:
                loaded = None
                loaded = name, RewardModel(*name)
            scores, uncertainties = loaded[1].score(asked["rows"], asked["max_length"])
            answer = {"scores": scores, "uncertainties": uncertainties}
        except Exception as error:  # noqa: BLE001 a chat template may refuse a row in its own words
            answer = {"error": f"{type(error).__name__}: {error}"[:400]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
