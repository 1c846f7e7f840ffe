"""Drift from the parent: KL on the candidate's answers, general tasks, and failures of before.

The general tasks are unlike the feedback: an online method may win more and more comparisons while
they fall. They and the failure cases are read, not generated: which of two answers is likelier a
token. A case is failed where that is the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from services.training.measures.tasks import task_figures
from services.training.trainers.evaluate import LOGITS
from services.training.trainers.job import Progress, TrainerJob, read_rows, write_rows
from services.training.trainers.models import (
    by_tokens,
    conversation_ids,
    load_adapter,
    load_base,
    load_tokenizer,
    padded,
    prompt_ids,
)

CAPABILITY = Path(__file__).resolve().parents[1] / "capability.jsonl"
KL_ANSWERS = 64
"""Most answers on which the KL is measured."""
ARMS = ("parent", "candidate")

Span = tuple[list[int], int]
"""Token ids of a conversation, and where its answer begins."""


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Measure drift; writes `drift.jsonl` with each item's margins.

    Returns:
        `kl`, nats a token of KL(candidate ‖ parent) over the whole vocabulary, `kl_answer`, its
        sum over an answer; `kl_first` and `kl_first_answer`, the same to the first version of the
        chain of parents where that one's adapter is given, or to the base where there is no parent; `<kind>_items`, `<kind>_parent` and `<kind>_candidate` (shares that are
        right), `<kind>_lost` (right with the parent, wrong with the candidate) and `<kind>_won`,
        of the kinds `capability` and `cases`; and what `task_figures` returns of the former.

    """
    tokenizer = load_tokenizer(job.base)
    model = load_adapter(load_base(job.base), folder / "adapter", trainable=False).eval()
    if job.parent_adapter:
        model.load_adapter(job.parent_adapter, "parent")
    first = "parent" if job.first_adapter == job.parent_adapter else "first"
    if job.first_adapter and first == "first":
        model.load_adapter(job.first_adapter, first)
    limit = min(job.trained.max_length, model.config.max_position_embeddings)
    answers = [
        _span(tokenizer, row, row["candidate"], limit)
        for row in read_rows(folder / "answers.jsonl")[:KL_ANSWERS]
    ]
    items = _items(job)
    total = len(answers) + 2 * len(items) + 1
    figures = _kl(model, answers, "parent")
    if job.first_adapter or not job.parent_adapter:
        far = figures if first == "parent" else _kl(model, answers, first)
        figures |= {name.replace("kl", "kl_first"): value for name, value in far.items()}
    progress.report("drift", len(answers), total)
    pairs = [
        [_span(tokenizer, item, item[side], limit) for side in ("good", "bad")] for item in items
    ]
    for number, arm in enumerate(ARMS, start=1):
        with as_arm(model, arm):
            good = likelihoods(model, [pair[0] for pair in pairs])
            bad = likelihoods(model, [pair[1] for pair in pairs])
        for item, better, worse in zip(items, good, bad, strict=True):
            item[arm] = better - worse
        progress.report("drift", len(answers) + number * len(items), total)
    write_rows(folder / "drift.jsonl", items)
    progress.report("drift", total, total)
    return figures | _shares("capability", items) | _shares("cases", items) | _by_task(items)


def _items(job: TrainerJob) -> list[dict[str, Any]]:
    tasks = [
        {
            "kind": "capability",
            "name": row["task"],
            "messages": [{"role": "user", "content": row["prompt"]}],
            "good": row["good"],
            "bad": row["bad"],
        }
        for row in read_rows(CAPABILITY)
    ]
    cases = read_rows(Path(job.cases)) if job.cases else []
    return [*tasks, *({"kind": "cases", **row} for row in cases)]


def _span(tokenizer: Any, row: dict[str, Any], answer: str, limit: int) -> Span:
    messages, tools = row["messages"], row.get("tools", "")
    ids = conversation_ids(tokenizer, messages, answer, tools)[:limit]
    return ids, min(max(1, len(prompt_ids(tokenizer, messages, tools))), len(ids))


@contextmanager
def as_arm(model: Any, arm: str) -> Iterator[None]:
    """The model as one arm: the parent is the base where it has no adapter."""
    if arm == "candidate":
        model.set_adapter("default")
        yield
    elif arm in model.peft_config:
        model.set_adapter(arm)
        yield
    else:
        with model.disable_adapter():
            yield


@torch.no_grad()
def likelihoods(model: Any, spans: Sequence[Span]) -> list[float]:
    """Mean log-probability of an answer's tokens, in nats; 0 for one without a token."""
    found = [0.0] * len(spans)
    for batch in _batches(model, spans):
        ids, mask = padded([spans[i][0] for i in batch], 0, left=False)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        values = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        for row, index in enumerate(batch):
            tokens, first = spans[index]
            if first < len(tokens):
                found[index] = float(values[row, first - 1 : len(tokens) - 1].mean())
    return found


@torch.no_grad()
def _kl(model: Any, spans: Sequence[Span], before: str) -> dict[str, float]:
    """KL(candidate ‖ before), exact at each token of the candidate's own answers."""
    total, tokens, answers = 0.0, 0, 0
    for batch in _batches(model, spans):
        ids, mask = padded([spans[i][0] for i in batch], 0, left=False)
        values: list[Any] = []
        for arm in (before, "candidate"):
            with as_arm(model, arm):
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            values.append(torch.log_softmax(logits, dim=-1))
        reference, candidate = values
        each = (candidate.exp() * (candidate - reference)).sum(-1)
        for row, index in enumerate(batch):
            ids_of, first = spans[index]
            count = len(ids_of) - first
            if count > 0:
                total += float(each[row, first - 1 : len(ids_of) - 1].sum())
                tokens += count
                answers += 1
    return {"kl": total / tokens, "kl_answer": total / answers} if tokens else {}


def _batches(model: Any, spans: Sequence[Span]) -> list[list[int]]:
    width = max(1, LOGITS // 2 // model.get_output_embeddings().weight.shape[0])
    return by_tokens([len(ids) for ids, _ in spans], tokens=min(width, 4096), rows=32)


def _shares(kind: str, items: Sequence[dict[str, Any]]) -> dict[str, float]:
    mine = [(item["parent"] > 0, item["candidate"] > 0) for item in items if item["kind"] == kind]
    figures = {
        f"{kind}_items": float(len(mine)),
        f"{kind}_lost": float(sum(before and not after for before, after in mine)),
        f"{kind}_won": float(sum(after and not before for before, after in mine)),
    }
    if mine:
        figures[f"{kind}_parent"] = sum(before for before, _ in mine) / len(mine)
        figures[f"{kind}_candidate"] = sum(after for _, after in mine) / len(mine)
    return figures


def _by_task(items: Sequence[dict[str, Any]]) -> dict[str, float]:
    right: dict[str, dict[str, dict[str, bool]]] = {arm: {} for arm in ARMS}
    for number, item in enumerate(items):
        if item["kind"] == "capability":
            for arm in ARMS:
                right[arm].setdefault(item["name"], {})[str(number)] = item[arm] > 0
    return task_figures(right["parent"], right["candidate"])
