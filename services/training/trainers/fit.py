"""Rows that the base's tokenizer and the context can hold: the others are named, with the reason.

Before any training, so that one row that a chat template refuses does not end the whole job, and
none is cut or dropped uncounted by a trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from services.training.trainers.job import Progress, TrainerJob, stored_rows
from services.training.trainers.models import (
    REASONING,
    answer_of,
    conversation_ids,
    load_tokenizer,
    positions,
    prompt_ids,
    turns_before,
)
from shared.contracts.recipes import ONLINE

MAX_DETAIL = 200
"""Characters of a template's own words that are kept."""
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What a chat template, a program of the base's own, raises."""


def run(job: TrainerJob, _: Path, progress: Progress) -> dict[str, Any]:
    """Try each row of the dataset; returns `left_out`, as `services.training.dataset.LeftOut`.

    A row is left out whole, never cut: an answer without its end, or without what it answers,
    teaches something else. The limit is the stage's `max_length`, and no more than the base has
    positions; a prompt of the evaluation must leave room for the answer.
    """
    tokenizer = load_tokenizer(job.base)
    trained = job.trained
    limits = {
        "train.jsonl": trained.max_length,
        "heldout.jsonl": trained.max_length,
        "judge.jsonl": job.reward.max_length,
        "prompts.jsonl": trained.max_length,
    }
    most = positions(job.base)
    files = {name: stored_rows(Path(job.data) / name) for name in limits}
    total = sum(map(len, files.values()))
    lines = ((name, *numbered) for name in files for numbered in enumerate(files[name], start=1))
    left_out: list[dict[str, Any]] = []
    for done, (name, line, row) in enumerate(lines, start=1):
        limit = min(limits[name], most)
        found = _problem(
            tokenizer,
            row,
            limit,
            answer_tokens=job.evaluation.max_new_tokens,
            reasoning=trained.reasoning and name != "judge.jsonl",
        )
        if name == "train.jsonl" and job.method in ONLINE and "tools" in row:
            found = "template", f"{job.method} asks prompts without tools"
        if found is not None:
            reason, detail = found
            left_out.append({"file": name, "line": line, "reason": reason, "detail": detail})
        progress.report("fit", done, total)
    return {"left_out": left_out}


def _problem(
    tokenizer: Any, row: dict[str, Any], limit: int, *, answer_tokens: int, reasoning: bool
) -> tuple[str, str] | None:
    """Why a row cannot be used, or None."""
    sides = [side for side in ("chosen", "rejected", "answer") if side in row]
    answers = [answer_of(row, side, reasoning=reasoning) for side in sides]
    messages, tools = row["messages"], row.get("tools", "")
    try:
        prompt = prompt_ids(tokenizer, messages, tools)
        read = [
            conversation_ids(tokenizer, turns_before(row, side), turn, tools)
            for side, turn in zip(sides, answers, strict=True)
        ]
        unthinking = [
            side
            for side, turn, ids in zip(sides, answers, read, strict=True)
            if REASONING in turn
            and ids
            == conversation_ids(tokenizer, turns_before(row, side), answer_of(row, side), tools)
        ]
    except TEMPLATE_ERRORS as error:
        return "template", f"{type(error).__name__}: {error}"[:MAX_DETAIL]
    for ids, turn in zip(read or [prompt], answers or [{}], strict=True):
        if missing := _unwritten_call(tokenizer, ids, [*messages, turn]):
            return "template", f"the chat template does not write the call of {missing}"[
                :MAX_DETAIL
            ]
    if unthinking:
        return "reasoning", "the chat template does not write what the model thought"
    if len({REASONING in turn for turn in answers}) > 1:
        # Preferring the answer without it would teach the model not to think.
        return "reasoning", "only one of the two answers has what the model thought"
    longest = max(map(len, read), default=len(prompt) + min(answer_tokens, limit // 2))
    if longest > limit:
        return "too_long", f"{longest} tokens; max_length is {limit}"
    return None


def _unwritten_call(tokenizer: Any, ids: list[int], turns: list[Mapping[str, Any]]) -> str:
    """Name of a tool call that the template left out, as one that knows no tools does.

    The answer would be trained as an empty one.
    """
    names = [call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())]
    if not names:
        return ""
    written = tokenizer.decode(ids)
    return next((name for name in names if name not in written), "")
