"""What the candidate answers to the eight fixed texts: teacher-forced log-probabilities, float32.

The adapter stays unmerged, as the engine serves it (design, invariant 8).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from services.training.trainers.job import Progress, TrainerJob
from services.training.trainers.models import device, load_adapter, load_tokenizer


@torch.no_grad()
def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, Any]:
    """A `shared.registry.versions.Fingerprint` as JSON, for `<attempt>/adapter`."""
    tokenizer = load_tokenizer(job.base)
    base = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32).to(device())
    model = load_adapter(base, folder / "adapter", trainable=False).eval()
    texts: list[dict[str, Any]] = []
    for number, text in enumerate(job.fingerprint_texts, start=1):
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([tokens], device=device())
        logits = model(input_ids=ids).logits[0, :-1].double()
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        texts.append({"tokens": tokens, "logprobs": logprobs.tolist()})
        progress.report("fingerprint", number, len(job.fingerprint_texts))
    return {"dtype": "float32", "texts": texts}
