"""Candidate against parent on held-out prompts: answers, the judge's verdict, perplexity, manners.

Only measures; what the figures mean for a release is the service's gate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.training.trainers.job import Progress, TrainerJob, read_rows, write_rows
from services.training.trainers.models import (
    Messages,
    conversation_ids,
    in_batches,
    load_adapter,
    load_base,
    load_tokenizer,
    padded,
    prompt_ids,
    set_seeds,
)
from services.training.trainers.reward import load_judge, score

NGRAM = 4
"""Words in a row that count as a repetition when an answer has them again."""
PERPLEXITY_BATCH = 16


@dataclass(frozen=True)
class Answers:
    """What one arm wrote, one entry a prompt, and how likely it finds held-out answers."""

    texts: list[str]
    lengths: list[int]
    ended: list[bool]
    perplexity: float | None


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Measure both arms; writes `answers.jsonl` and returns the figures.

    Figures are named `<arm>_perplexity`, `<arm>_length` (mean tokens), `<arm>_stop_share`,
    `<arm>_repetition`, and, with a judge, `wins`, `ties`, `losses` of the candidate.
    """
    data = Path(job.data)
    tokenizer = load_tokenizer(job.base)
    prompts = [row["messages"] for row in read_rows(data / "prompts.jsonl")]
    prompts = prompts[: job.evaluation.prompts]
    heldout = [
        (row["messages"], row.get("chosen") or row["answer"])
        for row in read_rows(data / "heldout.jsonl")
    ]
    steps = 2 * len(prompts) + 1
    folders = {"parent": job.parent_adapter, "candidate": str(folder / "adapter")}
    arms: dict[str, Answers] = {}
    for place, (arm, adapter) in enumerate(folders.items()):
        model = load_base(job.base)
        if adapter:
            model = load_adapter(model, adapter, trainable=False).merge_and_unload()
        model.eval()
        done = place * len(prompts)
        arms[arm] = _answers(job, model, tokenizer, prompts, heldout, (progress, done, steps))
    figures = {
        f"{arm}_{name}": value for arm, said in arms.items() for name, value in _manners(said)
    }
    rows = [
        {"messages": prompt, "parent": old, "candidate": new}
        for prompt, old, new in zip(
            prompts, arms["parent"].texts, arms["candidate"].texts, strict=True
        )
    ]
    if (Path(job.judge) / "adapter").exists() and prompts:
        figures |= _verdict(job, tokenizer, rows)
    write_rows(folder / "answers.jsonl", rows)
    progress.report("evaluate", steps, steps)
    return figures | {"prompts": float(len(prompts)), "heldout": float(len(heldout))}


def _answers(
    job: TrainerJob,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    heldout: Sequence[tuple[Messages, str]],
    reporting: tuple[Progress, int, int],
) -> Answers:
    progress, before, total = reporting
    encoded = [prompt_ids(tokenizer, messages) for messages in prompts]
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    texts, lengths = [""] * len(encoded), [0] * len(encoded)
    ended = [False] * len(encoded)
    set_seeds(job.seed)
    done = before
    for batch in in_batches(order, job.evaluation.batch_size):
        written = _generate(job, model, tokenizer, [encoded[i] for i in batch])
        for index, tokens in zip(batch, written, strict=True):
            stops = _stops(model, tokenizer)
            length = next((n for n, token in enumerate(tokens) if token in stops), None)
            ended[index] = length is not None
            lengths[index] = len(tokens) if length is None else length
            kept = tokens[: lengths[index]]
            texts[index] = tokenizer.decode(kept, skip_special_tokens=True).strip()
        done += len(batch)
        progress.report("evaluate", done, total)
    return Answers(texts, lengths, ended, _perplexity(model, tokenizer, heldout))


@torch.no_grad()
def _generate(
    job: TrainerJob, model: Any, tokenizer: Any, batch: Sequence[list[int]]
) -> list[list[int]]:
    ids, mask = padded(batch, tokenizer.pad_token_id, left=True)
    sampling: dict[str, Any] = {"do_sample": False}
    if job.evaluation.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": job.evaluation.temperature,
            "top_k": 0,
            "top_p": 1.0,
        }
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=job.evaluation.max_new_tokens,
        eos_token_id=sorted(_stops(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    return out[:, ids.shape[1] :].tolist()


def _stops(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a turn: the tokenizer's and those the model's own settings name."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}


@torch.no_grad()
def _perplexity(
    model: Any, tokenizer: Any, heldout: Sequence[tuple[Messages, str]]
) -> float | None:
    """Exponential of the mean negative log-likelihood of the answers' tokens, end of turn included."""
    nll, count = 0.0, 0
    limit = model.config.max_position_embeddings
    for batch in in_batches(range(len(heldout)), PERPLEXITY_BATCH):
        rows, starts = [], []
        for messages, answer in (heldout[i] for i in batch):
            rows.append(conversation_ids(tokenizer, messages, answer)[:limit])
            starts.append(len(prompt_ids(tokenizer, messages)))
        ids, mask = padded(rows, tokenizer.pad_token_id, left=False)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        taken = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        for row, (tokens, start) in enumerate(zip(rows, starts, strict=True)):
            answered = taken[row, max(start - 1, 0) : len(tokens) - 1]
            nll -= float(answered.sum())
            count += len(answered)
    return math.exp(min(nll / count, 50.0)) if count else None


def _manners(said: Answers) -> list[tuple[str, float]]:
    figures = [] if said.perplexity is None else [("perplexity", said.perplexity)]
    count = len(said.texts)
    if count:
        figures += [
            ("length", sum(said.lengths) / count),
            ("stop_share", sum(said.ended) / count),
            ("repetition", sum(map(repetition, said.texts)) / count),
        ]
    return figures


def repetition(text: str) -> float:
    """Share of an answer's runs of four words that it has said before; 0 for a short one."""
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    total = runs.total()
    return (total - len(runs)) / total if total else 0.0


def _verdict(job: TrainerJob, tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    judge = load_judge(job, tokenizer)
    for arm in ("parent", "candidate"):
        scores = score(judge, tokenizer, [(row["messages"], row[arm]) for row in rows])
        for row, value in zip(rows, scores, strict=True):
            row[f"{arm}_score"] = value
    gains = [row["candidate_score"] - row["parent_score"] for row in rows]
    ties = sum(row["candidate"] == row["parent"] for row in rows)
    wins = sum(
        gain > 0 for gain, row in zip(gains, rows, strict=True) if row["candidate"] != row["parent"]
    )
    return {
        "wins": float(wins),
        "ties": float(ties),
        "losses": float(len(rows) - wins - ties),
        "reward_gain": sum(gains) / len(gains),
    }
