"""JSONL import: every row is checked, a bad one is left out or refused with its line number."""

# pyright: strict
from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import orjson
from pydantic import ValidationError

from services.training.dataset import (
    CUT,
    Demonstration,
    LabelledAnswer,
    LeftOut,
    Pair,
    Row,
    canonical,
)
from services.training.errors import BadDataset
from shared.contracts.events.base import MAX_TEXT, Message

MAX_BYTES = 512 * 1024 * 1024
MAX_ROWS = 500_000
SHOWN_PROBLEMS = 10
PAIR_FORM = (
    '{"messages": [{"role", "content"}, …], "chosen": text, "rejected": text} '
    'or {"prompt": [turns], "chosen": [turn], "rejected": [turn]} '
    'or {"chosen": [prompt and answer], "rejected": [prompt and answer]}'
)
DEMONSTRATION_FORM = (
    '{"messages": [{"role", "content"}, …, {"role": "assistant", "content"}]} '
    'or {"prompt": [turns], "completion": [turn]}'
)

LABELLED_FORM = (
    '{"messages": [{"role", "content"}, …], "completion": text, "label": true or false} '
    'or {"prompt": [turns], "completion": [turn], "label": true or false}'
)

T = TypeVar("T")


class _BadRow(Exception):
    """What is wrong with one row."""


def read_pairs(data: bytes, left_out: list[LeftOut] | None = None) -> tuple[Pair, ...]:
    """Preference pairs from JSONL.

    Args:
        data: The file's bytes.
        left_out: Takes the rows that are not of the form. Without it, one such row refuses all.

    Raises:
        BadDataset: rows that are not of the form, by line number; or no row is.

    """
    return _read(data, _pair, PAIR_FORM, left_out)


def read_demonstrations(
    data: bytes, left_out: list[LeftOut] | None = None
) -> tuple[Demonstration, ...]:
    """Demonstrations from JSONL; arguments and errors are those of `read_pairs`."""
    return _read(data, _demonstration, DEMONSTRATION_FORM, left_out)


def read_labelled(data: bytes, left_out: list[LeftOut] | None = None) -> tuple[LabelledAnswer, ...]:
    """Single answers, good or bad; arguments and errors are those of `read_pairs`."""
    return _read(data, _labelled, LABELLED_FORM, left_out)


def _read(
    data: bytes, parse: Callable[[Row], T], form: str, left_out: list[LeftOut] | None
) -> tuple[T, ...]:
    rows: list[T] = []
    problems: list[LeftOut] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value: object = orjson.loads(line)
            if not isinstance(value, dict):
                raise _BadRow("not an object")
            rows.append(parse(cast("Row", value)))
        except orjson.JSONDecodeError as error:
            problems.append(_bad(number, f"not JSON ({error.msg})"))
        except _BadRow as error:
            problems.append(_bad(number, str(error)))
        if len(rows) > MAX_ROWS:
            raise BadDataset(f"dataset: more than {MAX_ROWS} rows; split it")
    if problems and (left_out is None or not rows):
        more = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(f"line {one.line}: {one.detail}" for one in problems[:SHOWN_PROBLEMS])
        raise BadDataset(
            f"dataset: {shown}{f'; and {more} more' if more > 0 else ''}. A row is {form}"
        )
    if not rows:
        raise BadDataset(f"dataset: no rows. A row is {form}")
    if left_out is not None:
        left_out.extend(problems)
    return tuple(rows)


def _bad(line: int, detail: str) -> LeftOut:
    return LeftOut(file="import", line=line, reason="bad_row", detail=detail)


def _pair(row: Row) -> Pair:
    prompt, chosen, rejected = _prompt(row)
    if prompt[-1].role == "assistant":
        raise _BadRow(
            "messages: the prompt ends with an answer; it must end before chosen and rejected"
        )
    chosen_cut, rejected_cut = (_flag(row, name) for name in CUT)
    return Pair(_identity(row), prompt, chosen, rejected, chosen_cut, rejected_cut, meta=_meta(row))


def _prompt(row: Row) -> tuple[tuple[Message, ...], str, str]:
    """A pair's prompt and answers, whether the prompt stands alone or begins both conversations."""
    given = next((name for name in ("messages", "prompt") if name in row), "")
    if not _is_conversation(row.get("chosen")) and not _is_conversation(row.get("rejected")):
        messages = _messages(row, given or "messages")
        return messages, _answer(row, "chosen"), _answer(row, "rejected")
    (*prompt, chosen), (*other, rejected) = _messages(row, "chosen"), _messages(row, "rejected")
    if prompt != other:
        raise _BadRow("chosen, rejected: conversations must differ in their last turn alone")
    if given and _messages(row, given) != tuple(prompt):
        raise _BadRow(f"{given}: is not what chosen and rejected begin with")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer.role != "assistant":
            raise _BadRow(f"{name}: the last turn must be the assistant's")
    answers = {"chosen": chosen.content, "rejected": rejected.content}
    return tuple(prompt), _answer(answers, "chosen"), _answer(answers, "rejected")


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(cast("list[object]", value)) > 1


def _demonstration(row: Row) -> Demonstration:
    if "messages" in row:
        *prompt, last = _messages(row, "messages")
        if last.role != "assistant":
            raise _BadRow("messages: the last turn must be the assistant's")
        if not prompt:
            raise _BadRow("messages: an answer needs a prompt before it")
        return Demonstration(_identity(row), tuple(prompt), last.content, _meta(row))
    messages = _messages(row, "prompt")
    return Demonstration(_identity(row), messages, _answer(row, "completion"), _meta(row))


def _labelled(row: Row) -> LabelledAnswer:
    messages = _messages(row, "messages" if "messages" in row else "prompt")
    if not isinstance(row.get("label"), bool):
        raise _BadRow("label: must be true for a good answer or false for a bad one")
    return LabelledAnswer(
        _identity(row), messages, _answer(row, "completion"), row["label"], meta=_meta(row)
    )


def _messages(row: Row, name: str) -> tuple[Message, ...]:
    value: Any = row.get(name)
    if isinstance(value, str) and value.strip():
        return (Message(role="user", content=value),)
    if not isinstance(value, list) or not value:
        raise _BadRow(f"{name}: must be a list of turns")
    try:
        return tuple(Message.model_validate(turn) for turn in cast("list[object]", value))
    except ValidationError as error:
        raise _BadRow(f"{name}: {error.errors(include_url=False)[0]['msg']}") from None


def _answer(row: Row, name: str) -> str:
    value: Any = row.get(name)
    if isinstance(value, list) and len(cast("list[object]", value)) == 1:
        value = _messages(row, name)[0].content
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f"{name}: must be a text or a list of one turn")
    if len(value) > MAX_TEXT:
        raise _BadRow(f"{name}: longer than {MAX_TEXT} characters")
    return value


def _flag(row: Row, name: str) -> bool:
    value: Any = row.get(name, False)
    if not isinstance(value, bool):
        raise _BadRow(f"{name}: must be true or false, or left out")
    return value


def _meta(row: Row) -> dict[str, str]:
    given: Any = row.get("meta")
    meta: dict[str, Any] = dict(cast("Row", given)) if isinstance(given, dict) else {}
    meta.setdefault("category", row.get("category", ""))
    known = ("category", "locale", "segment", "chosen_version", "rejected_version")
    kept = {name: str(meta[name]) for name in known if meta.get(name)}
    return {"source": "import", **kept}


def _identity(row: Row) -> str:
    return hashlib.sha256(canonical([row])).hexdigest()[:32]
