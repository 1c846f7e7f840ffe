"""`python -m services.inference.scoring`: scores answers by a reward model, in the ML environment.

Reads one JSON object a line from standard input and answers each with one line: `{"base", "revision",
"adapter", "max_length", "rows": [{"messages", "completion"}]}` becomes `{"scores", "uncertainties"}` or
`{"error"}`. It ends when its input ends, so it never outlives the service. The last reward model stays loaded.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

from services.inference.scoring_passes import passes

CPU_BATCH_TOKENS = 512
"""Most padded tokens of one pass on a CPU: what it computes stays in the caches of a core."""
GPU_BATCH_TOKENS = 8192


class RewardModel:
    """A base with score heads and a LoRA, ready to score."""

    def __init__(self, base: str, revision: str, adapter: str) -> None:
        cuda = torch.cuda.is_available()
        self._device = "cuda" if cuda else "cpu"
        self._batch_tokens = GPU_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS
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
        self.model: Any = PeftModel.from_pretrained(model.to(self._device), adapter)
        if not cuda:
            # A third of a short request; bfloat16 weights would round the adapter away.
            self.model = self.model.merge_and_unload()
        self.model.eval()
        self.shares = self._repeats_its_cache()

    @torch.inference_mode()
    def score(
        self, rows: Sequence[dict[str, Any]], max_length: int
    ) -> tuple[list[float], list[float]]:
        """A score for each row, the mean of the heads, and their standard deviation.

        Higher is better, and only differences mean something. One head has no deviations.
        """
        read = [self._ids(row, max_length) for row in rows]
        scores = torch.zeros(len(rows), self.model.config.num_labels)
        for shared in passes(read, self._batch_tokens, shares=self.shares):
            cache: Any = None
            if shared.prefix:
                prefix = [read[shared.batches[0][0]][: shared.prefix]]
                cache = self.model(input_ids=self._padded(prefix), use_cache=True).past_key_values
            for batch in shared.batches:
                ids = self._padded([read[index][shared.prefix :] for index in batch])
                past: Any = copy.deepcopy(cache)
                for layer in past.layers if past is not None else ():
                    # Views: its own `batch_repeat_interleave` would copy each token's for each row.
                    layer.keys = layer.keys.expand(len(batch), -1, -1, -1)
                    layer.values = layer.values.expand(len(batch), -1, -1, -1)
                # No mask: padding is on the right, where no token of a causal model looks.
                logits = self.model(
                    input_ids=ids, past_key_values=past, use_cache=past is not None
                ).logits
                scores[batch] = logits.float().cpu()
        several = scores.shape[1] > 1
        return scores.mean(1).tolist(), scores.std(1, correction=0).tolist() if several else []

    def _ids(self, row: dict[str, Any], max_length: int) -> list[int]:
        """Its tokens up to the last one that is no padding: that one has the score."""
        turns = [*row["messages"], {"role": "assistant", "content": row["completion"]}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"][:max_length]
        while len(ids) > 1 and ids[-1] == self._tokenizer.pad_token_id:
            ids.pop()
        return ids

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        width, pad = max(map(len, rows)), self._tokenizer.pad_token_id
        ids = [row + [pad] * (width - len(row)) for row in rows]
        return torch.tensor(ids, device=self._device)

    @torch.inference_mode()
    def _repeats_its_cache(self) -> bool:
        """Whether what a prefix leaves behind is keys and values of every token, and no state."""
        one = self._padded([[self._tokenizer.pad_token_id]])
        cache = self.model(input_ids=one, use_cache=True).get("past_key_values")
        return isinstance(cache, DynamicCache) and all(
            type(layer) is DynamicLayer for layer in cache.layers
        )


def heads_of(adapter: str) -> int:
    """How many score heads a reward model was written with."""
    with safe_open(Path(adapter) / "adapter_model.safetensors", framework="pt") as file:
        name = next(name for name in file.keys() if name.endswith("score.weight"))  # noqa: SIM118
        return int(file.get_slice(name).get_shape()[0])


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
