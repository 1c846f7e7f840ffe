"""JSONL import: every row is checked, a bad one is left out or refused with its line number."""

# pyright: strict
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import orjson
from pydantic import ValidationError

from services.training.dataset_rows import (
    CUT,
    AskedPrompt,
    Demonstration,
    LabelledAnswer,
    LeftOut,
    Pair,
    Row,
    canonical,
)
from services.training.errors import BadDataset
from shared.contracts.conversation import answer_text, read_json, stored_tools, stored_turn
from shared.contracts.events.base import MAX_TEXT, Message, Tool
from shared.contracts.row_sources import AUGMENTED, IMPORT, MACHINE_MADE
from shared.redaction.detection import Redact, by_rules
from shared.redaction.redactor import Redactor
from shared.redaction.turns import clean_json

MAX_BYTES = 1024 * 1024 * 1024
MAX_ROWS = 1_000_000
SHOWN_PROBLEMS = 10
PAIR_FORM = (
    '{"messages": [{"role", "content"}, …], "chosen": text or turn, "rejected": text or turn} '
    'or {"prompt": [turns], "chosen": [turn], "rejected": [turn]} '
    'or {"chosen": [prompt and answer], "rejected": [prompt and answer]}'
)
DEMONSTRATION_FORM = (
    '{"messages": [{"role", "content"}, …, {"role": "assistant", "content"}]} '
    'or {"prompt": [turns], "completion": [turn]}; "tools" may stand beside them'
)

LABELLED_FORM = (
    '{"messages": [{"role", "content"}, …], "completion": text, "label": true or false} '
    'or {"prompt": [turns], "completion": [turn], "label": true or false}'
)

IMPORTED = {"source": IMPORT}
"""The `meta` of most rows; one for all, as there are hundreds of thousands."""
T = TypeVar("T")
_RULES = Redactor().text


class LeftOutRows(Protocol):
    """Takes rows that are left out."""

    def append(self, row: LeftOut, /) -> object:
        """Take one."""
        ...


class _BadRow(Exception):
    """What is wrong with one row."""


@dataclass(frozen=True)
class ImportedRows:
    """A dataset somebody handed in, as a copy that does not change while it is read."""

    uri: str
    file: BinaryIO
    strict: bool = False
    """Whether one bad row refuses all; else bad rows are left out and counted."""
    checked: BinaryIO | None = None
    """The same lines as a detector of personal data left them, where one was asked."""

    def lines(self) -> Iterable[bytes]:
        """The file's lines, from its beginning."""
        return from_beginning(self.checked or self.file)

    def close(self) -> None:
        """Give its files back."""
        for file in (self.file, self.checked):
            if file is not None:
                file.close()

    @property
    def sha256(self) -> str:
        """The file's hash."""
        digest = hashlib.sha256()
        for line in from_beginning(self.file):
            digest.update(line)
        return digest.hexdigest()


def from_beginning(file: BinaryIO) -> BinaryIO:
    """A file, to be read from its beginning."""
    file.seek(0)
    return file


def read_pairs(lines: Iterable[bytes], left_out: list[LeftOut] | None = None) -> tuple[Pair, ...]:
    """All pairs of `pairs_in`; arguments and errors are those of it."""
    return tuple(pairs_in(lines, left_out))


def pairs_in(lines: Iterable[bytes], left_out: LeftOutRows | None = None) -> Iterator[Pair]:
    """Preference pairs from JSONL, one at a time.

    Args:
        lines: The file's lines, which are read once and not kept.
        left_out: Takes the rows that are not of the form. Without it, one such row refuses all.

    Raises:
        BadDataset: once all is read: rows that are not of the form, by line number; or no row is.

    """
    return _read(lines, _pair, PAIR_FORM, left_out)


def read_demonstrations(
    lines: Iterable[bytes], left_out: list[LeftOut] | None = None
) -> tuple[Demonstration, ...]:
    """All demonstrations of `demonstrations_in`."""
    return tuple(demonstrations_in(lines, left_out))


def demonstrations_in(
    lines: Iterable[bytes], left_out: LeftOutRows | None = None
) -> Iterator[Demonstration]:
    """Demonstrations from JSONL; arguments and errors are those of `pairs_in`."""
    return _read(lines, _demonstration, DEMONSTRATION_FORM, left_out)


def read_labelled(
    lines: Iterable[bytes], left_out: list[LeftOut] | None = None
) -> tuple[LabelledAnswer, ...]:
    """All answers of `labelled_in`."""
    return tuple(labelled_in(lines, left_out))


def labelled_in(
    lines: Iterable[bytes], left_out: LeftOutRows | None = None
) -> Iterator[LabelledAnswer]:
    """Single answers, good or bad; arguments and errors are those of `pairs_in`."""
    return _read(lines, _labelled, LABELLED_FORM, left_out)


def _read(
    lines: Iterable[bytes],
    parse: Callable[[Row], T],
    form: str,
    left_out: LeftOutRows | None,
) -> Iterator[T]:
    rows = bad = 0
    shown: list[LeftOut] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parsed(line, number, parse)
        if isinstance(row, LeftOut):
            bad += 1
            if len(shown) < SHOWN_PROBLEMS:
                shown.append(row)
            if left_out is not None:
                left_out.append(row)
            continue
        rows += 1
        if rows > MAX_ROWS:
            raise BadDataset(f"dataset: more than {MAX_ROWS} rows; split it")
        yield row
    if bad and (left_out is None or not rows):
        told = "; ".join(f"line {one.line}: {one.detail}" for one in shown)
        more = f"; and {bad - len(shown)} more" if bad > len(shown) else ""
        raise BadDataset(f"dataset: {told}{more}. A row is {form}")
    if not rows:
        raise BadDataset(f"dataset: no rows. A row is {form}")


def _parsed(line: bytes, number: int, parse: Callable[[Row], T]) -> T | LeftOut:
    try:
        value: object = orjson.loads(line)
        if not isinstance(value, dict):
            raise _BadRow("not an object")
        return parse(cast("Row", redacted_row(cast("Row", value), _RULES)))
    except orjson.JSONDecodeError as error:
        return _bad(number, f"not JSON ({error.msg})")
    except RecursionError:
        return _bad(number, "nested too deep")
    except _BadRow as error:
        return _bad(number, str(error))


def redacted_row(value: object, redact: Redact, name: str = "") -> object:
    """JSON with every text redacted, as what the services themselves store is."""
    if isinstance(value, str):
        if name == "arguments":
            with suppress(ValueError):
                return clean_json(value, redact)
        return (by_rules(redact) if name.endswith("id") else redact)(value)
    if isinstance(value, list):
        return [redacted_row(one, redact, name) for one in cast("list[object]", value)]
    if isinstance(value, dict):
        fields = cast("Row", value).items()
        return {field: redacted_row(one, redact, field) for field, one in fields}
    return value


def _bad(line: int, detail: str) -> LeftOut:
    return LeftOut(file="import", line=line, reason="bad_row", detail=detail)


def _pair(row: Row) -> Pair:
    prompt, chosen, rejected = _prompt(row)
    if prompt[-1].role == "assistant":
        raise _BadRow(
            "messages: the prompt ends with an answer; it must end before chosen and rejected"
        )
    chosen_cut, rejected_cut = (_flag(row, name) for name in CUT)
    return Pair(
        _identity(row), prompt, answer_text(chosen.model_dump()),
        answer_text(rejected.model_dump()), chosen_cut, rejected_cut, meta=_meta(row),
        tools=_tools(row), chosen_turn=_beyond_text(chosen), rejected_turn=_beyond_text(rejected),
    )  # fmt: skip


def _prompt(row: Row) -> tuple[tuple[Message, ...], Message, Message]:
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
    return tuple(prompt), _said(chosen, "chosen"), _said(rejected, "rejected")


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(cast("list[object]", value)) > 1


def _demonstration(row: Row) -> Demonstration:
    if "messages" in row:
        *prompt, last = _messages(row, "messages")
        if last.role != "assistant":
            raise _BadRow("messages: the last turn must be the assistant's")
        if not prompt:
            raise _BadRow("messages: an answer needs a prompt before it")
        return _demonstrated(row, tuple(prompt), last)
    return _demonstrated(row, _messages(row, "prompt"), _answer(row, "completion"))


def _demonstrated(row: Row, prompt: tuple[Message, ...], answer: Message) -> Demonstration:
    text, turn = answer_text(answer.model_dump()), _beyond_text(answer)
    return Demonstration(_identity(row), prompt, text, _meta(row), _tools(row), turn)


def _labelled(row: Row) -> LabelledAnswer:
    messages = _messages(row, "messages" if "messages" in row else "prompt")
    if not isinstance(row.get("label"), bool):
        raise _BadRow("label: must be true for a good answer or false for a bad one")
    answer = _answer(row, "completion" if "completion" in row else "answer")
    return LabelledAnswer(
        _identity(row), messages, answer_text(answer.model_dump()), row["label"], meta=_meta(row),
        tools=_tools(row), answer_turn=_beyond_text(answer),
    )  # fmt: skip


def _messages(row: Row, name: str) -> tuple[Message, ...]:
    value: Any = row.get(name)
    if isinstance(value, str) and value.strip():
        return (Message(role="user", content=value),)
    if not isinstance(value, list) or not value:
        raise _BadRow(f"{name}: must be a list of turns")
    try:
        return tuple(_turn(turn) for turn in cast("list[object]", value))
    except ValidationError as error:
        raise _BadRow(f"{name}: {error.errors(include_url=False)[0]['msg']}") from None
    except ValueError as error:
        raise _BadRow(f"{name}: {error}") from None


def _turn(value: object) -> Message:
    """A turn in OpenAI's form; what lacks its role or content is left to the model to refuse."""
    if isinstance(value, dict):
        turn = cast("Row", value)
        if "role" in turn and ("content" in turn or "tool_calls" in turn):
            return Message.model_validate(stored_turn(turn))
    return Message.model_validate(value)


def _answer(row: Row, name: str) -> Message:
    """An answer; a dataset has one that is more than text as a turn beside its text."""
    value: Any = row.get(f"{name}_turn", row.get(name))
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and len(cast("list[object]", value)) == 1:
        return _said(_messages({name: value}, name)[0], name)
    if not isinstance(value, str):
        raise _BadRow(f"{name}: must be a text or a list of one turn")
    if len(value) > MAX_TEXT:
        raise _BadRow(f"{name}: longer than {MAX_TEXT} characters")
    return _said(Message(role="assistant", content=value), name)


def _said(answer: Message, name: str) -> Message:
    """An answer that says something or calls a tool."""
    if not answer.content.strip() and not answer.tool_calls:
        raise _BadRow(f"{name}: must be a text or a list of one turn")
    return answer


def _beyond_text(answer: Message) -> Message | None:
    return answer if answer.tool_calls else None


def _tools(row: Row) -> tuple[Tool, ...]:
    value: Any = row.get("tools")
    try:
        given = read_json(value) if isinstance(value, str) else value
        return tuple(Tool.model_validate(tool) for tool in stored_tools(given))
    except ValueError as error:
        raise _BadRow(f"tools: {error}") from None


def _flag(row: Row, name: str) -> bool:
    value: Any = row.get(name, False)
    if not isinstance(value, bool):
        raise _BadRow(f"{name}: must be true or false, or left out")
    return value


def _meta(row: Row) -> dict[str, str]:
    given: Any = row.get("meta")
    meta: dict[str, Any] = dict(cast("Row", given)) if isinstance(given, dict) else {}
    meta.setdefault("category", row.get("category", ""))
    known = ("category", "locale", "segment", "chosen_version", "rejected_version", "labeller")
    kept = {name: str(meta[name]) for name in known if meta.get(name)}
    source = str(meta.get("source", ""))
    if source not in MACHINE_MADE:
        return {"source": IMPORT, **kept} if kept else IMPORTED
    if source == AUGMENTED:
        if "origin" in row:
            kept["origin"] = AskedPrompt(_messages(row, "origin"), _tools(row)).normal
        elif meta.get("origin"):
            kept["origin"] = str(meta["origin"])  # a dataset's own line
        else:
            raise _BadRow("origin: an augmented row must have its original's turns")
    return {"source": source, **kept}


def _identity(row: Row) -> str:
    return hashlib.sha256(canonical([row])).hexdigest()[:32]
