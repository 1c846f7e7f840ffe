"""`python -m services.training.trainers.merge`: a base and its LoRA as one model's folder.

Reads a JSON object from standard input, `{"base", "revision", "adapter", "texts", "dtype", "to"}`, and answers
with one on standard output: what it measured, or `{"error"}`. `texts` are those of the version's
fingerprint, with the log-probabilities on record, and `to` is an empty folder. Weights are merged in float32, and
what was written is read again before it counts.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from services.training.trainers.fingerprint import distance, logprobs
from services.training.trainers.models import device
from shared.registry.adapters import TOLERANCE

MERGED_APART = 1e-3
"""Largest mean difference, in nats, of float32 sums in another order."""
SPARE_BYTES = 64 * 2**20
"""Beside the weights: tokenizer, configuration."""


class CannotMerge(Exception):
    """The merged folder would not be the version; says why and what to do."""


def merge(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Write the merged model, and return how far it is from what is on record.

    Differences are means over all tokens of the texts, in nats: `adapter`, base and adapter here from the
    record; `merged`, float32 sums from base and adapter; `written`, what was read back from base and
    adapter, rounding included; `base`, the base alone from base and adapter.

    Raises:
        CannotMerge: one is too large, or the disk too small.
        OSError: a file cannot be read or written.

    """
    place = {"revision": asked["revision"]}
    dtype = asked["dtype"] or _dtype_of(AutoConfig.from_pretrained(asked["base"], **place))
    tokens = [text["tokens"] for text in asked["texts"]]
    recorded = [text["logprobs"] for text in asked["texts"]]
    model: Any = AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32, **place)
    model = PeftModel.from_pretrained(model.to(device()), asked["adapter"]).eval()
    apart = logprobs(model, tokens)
    with model.disable_adapter():
        found = {"base": distance(logprobs(model, tokens), apart)}
    found["adapter"] = distance(apart, recorded)
    if found["adapter"] > TOLERANCE["float32"]:
        raise CannotMerge(
            f"base: with the adapter on it, it answers otherwise than is on record, by "
            f"{found['adapter']:.3g} nats a token (at most {TOLERANCE['float32']:g}); give the base "
            "and the revision that the version was trained on"
        )
    model = model.merge_and_unload(safe_merge=True)
    found["merged"] = distance(logprobs(model, tokens), apart)
    if found["merged"] > MERGED_APART:
        raise CannotMerge(
            f"adapter: merged into the weights it answers otherwise, by {found['merged']:.3g} nats a "
            f"token (at most {MERGED_APART:g}); serve it beside its base"
        )
    to = Path(asked["to"])
    model.to(getattr(torch, dtype))
    needed = SPARE_BYTES + sum(weight.nbytes for weight in model.parameters())
    if (free := shutil.disk_usage(to).free) < needed:
        raise CannotMerge(
            f"{to.parent}: has {free:,} bytes free, and the model takes {needed:,}; make room, or name "
            "a folder on another disk"
        )
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(asked["base"], **place).save_pretrained(to)
    read: Any = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)
    read = read.to(device()).eval()
    found["written"] = distance(logprobs(read, tokens), apart)
    limit = TOLERANCE["float32"] if dtype == "float32" else TOLERANCE["bfloat16"]
    if found["written"] > limit:
        raise CannotMerge(
            f"dtype: rounded to {dtype} the model answers otherwise, by {found['written']:.3g} nats a "
            f"token (at most {limit:g}); ask for --dtype float32"
        )
    return {"dtype": dtype, "difference": found, "parameters": read.num_parameters()}


def _dtype_of(config: Any) -> str:
    return str(config.dtype or torch.float32).removeprefix("torch.")


def main() -> int:
    """Answer one request."""
    # Whatever a library prints must not be taken for the answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer: dict[str, Any]
    try:
        answer = merge(json.load(sys.stdin))
    except (CannotMerge, OSError, ValueError) as error:
        answer = {"error": str(error)[:1000]}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
