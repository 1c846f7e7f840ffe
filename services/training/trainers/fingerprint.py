"""Fingerprint of the candidate: teacher-forced log-probabilities of eight fixed texts, float32.

The adapter stays unmerged, as the engine serves it. Beside them the distances to what it could be
mistaken for: the engine does not serve a version too near to its base or parent (design,
invariant 8), so the gate asks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from services.training.trainers.job import Progress, TrainerJob
from services.training.trainers.models import device, load_adapter, load_tokenizer, loading


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, Any]:
    """A `shared.registry.versions.Fingerprint` as JSON for `<attempt>/adapter`, and `distances`.

    A distance is the mean absolute difference over all tokens, in nats, by `base` and `parent`.
    """
    tokenizer = load_tokenizer(job.base)
    with loading(job.base):
        base = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32).to(device())
    model = load_adapter(base, folder / "adapter", trainable=False).eval()
    rows: list[list[int]] = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in job.fingerprint_texts
    ]
    own = logprobs(model, rows)
    with model.disable_adapter():
        others = {"base": logprobs(model, rows)}
    others["parent"] = others["base"]
    if job.parent_adapter:
        model.load_adapter(job.parent_adapter, "parent")
        model.set_adapter("parent")
        others["parent"] = logprobs(model, rows)
    progress.report("fingerprint", 1, 1)
    return {
        "dtype": "float32",
        "texts": [
            {"tokens": tokens, "logprobs": values} for tokens, values in zip(rows, own, strict=True)
        ],
        "distances": {name: distance(own, values) for name, values in others.items()},
    }


@torch.no_grad()
def logprobs(model: Any, rows: Sequence[list[int]]) -> list[list[float]]:
    """Of each token of the rows, given those before it; the first has none."""
    found: list[list[float]] = []
    for tokens in rows:
        ids = torch.tensor([tokens], device=device())
        logits = model(input_ids=ids).logits[0, :-1].double()
        values = torch.log_softmax(logits, dim=-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        found.append(values.tolist())
    return found


def distance(left: list[list[float]], right: list[list[float]]) -> float:
    """Mean absolute difference over all tokens, in nats."""
    differences = [
        abs(one - other)
        for ours, theirs in zip(left, right, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return sum(differences) / len(differences)
