"""LLaMA-Factory's ShareGPT rows for preference training and KTO, with calls of tools.

The form has one call a turn, `function_call`, answered by the next one, `observation`, and no ids:
calls are read as `call_1`, `call_2` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any

from services.cli.pair_formats.pair import (
    AnswerRow,
    BadPair,
    PairFormat,
    PairRow,
    Row,
    is_label,
    said,
    text,
    tools_of,
)
from shared.contracts.conversation import compact_json, openai_tools, read_json, stored_turn
from shared.contracts.events.base import Message

_SPEAKERS = {"user": "human", "assistant": "gpt"}
_ROLES = {speaker: role for role, speaker in _SPEAKERS.items()}
CALL, RESULT = "function_call", "observation"


def _read(row: Row) -> PairRow | AnswerRow:
    given = row.get("conversations")
    if not isinstance(given, list) or not given:
        raise BadPair("conversations: must be a list of turns")
    system = [said("system", text(row, "system"))] if row.get("system") else []
    tools, ids = tools_of(row.get("tools")), (f"call_{number}" for number in count(1))
    messages = [*system, *_turns(given, "conversations", ids)]
    if "kto_tag" in row:
        *prompt, last = messages
        if last.role != "assistant" or not prompt or not is_label(row["kto_tag"]):
            raise BadPair("kto_tag: must be true or false, of an answer that ends conversations")
        return AnswerRow(tuple(prompt), last, row["kto_tag"], tools)
    sides = ([row.get(side)] for side in ("chosen", "rejected"))
    chosen, rejected = chain.from_iterable(
        _turns(side, "chosen, rejected", ids, answered=True) for side in sides
    )
    return PairRow(tuple(messages), chosen, rejected, tools)


def _turns(
    given: Sequence[object], name: str, ids: Iterator[str], *, answered: bool = False
) -> Iterator[Message]:
    """Turns of the form; `answered` allows an assistant's alone."""
    called = ""
    for one in given:
        speaker = one.get("from") if isinstance(one, dict) else None
        if not isinstance(one, dict) or not isinstance(speaker, str):
            raise BadPair(f"{name}: a turn has from and value")
        if answered and speaker not in ("gpt", CALL):
            raise BadPair(f"{name}: must be from gpt, or a {CALL}")
        if speaker == CALL:
            called = next(ids)
            yield _call(text(one, "value"), name, called)
        elif speaker == RESULT:
            if not called or not isinstance(one.get("value"), str):
                raise BadPair(f"{name}: an {RESULT} is a text after a {CALL}")
            yield Message(role="tool", content=one["value"], tool_call_id=called)
            called = ""
        elif speaker in _ROLES:
            yield said(_ROLES[speaker], text(one, "value"))
        else:
            raise BadPair(f"{name}: from is {', '.join(_ROLES)}, {CALL} or {RESULT}")


def _call(value: str, name: str, identifier: str) -> Message:
    try:
        call = read_json(value)
    except ValueError as error:
        raise BadPair(f"{name}: a {CALL} is no JSON ({error})") from None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        raise BadPair(f"{name}: a {CALL} has one name and its arguments")
    turn = {"role": "assistant", "tool_calls": [{"id": identifier, "function": call}]}
    return Message.model_validate(stored_turn(turn))


def _write(pair: PairRow) -> dict[str, Any]:
    chosen, rejected = (_written(one) for one in (pair.chosen, pair.rejected))
    return _with_conversation(pair, pair.messages, chosen=chosen, rejected=rejected)


def _write_answer(row: AnswerRow) -> dict[str, Any]:
    return _with_conversation(row, row.turns, kto_tag=row.label)


def _with_conversation(
    row: PairRow | AnswerRow, messages: Sequence[Message], **fields: object
) -> dict[str, Any]:
    system = [turn.content for turn in messages if turn.role == "system"]
    rest = [turn for turn in messages if turn.role != "system"]
    if len(system) > 1 or (system and messages[0].role != "system") or not rest:
        raise BadPair("messages: the form has one system turn at most, before the others")
    for before, turn in zip([None, *rest], rest, strict=False):
        called = before.tool_calls[0].id if before and before.tool_calls else None
        if turn.role == "tool" and (called is None or turn.tool_call_id != called):
            raise BadPair("messages: the form has a tool's result only after its one call")
    tools = {"tools": compact_json(openai_tools(row.tools))} if row.tools else {}
    written = {"conversations": [_written(turn) for turn in rest], **fields, **tools}
    return written | ({"system": system[0]} if system else {})


def _written(turn: Message) -> dict[str, str]:
    if turn.name:
        raise BadPair("messages: the form has no name of a speaker")
    if turn.role == "tool":
        return {"from": RESULT, "value": turn.content}
    if not turn.tool_calls:
        return {"from": _SPEAKERS[turn.role], "value": turn.content}
    (call, *more) = turn.tool_calls
    if more or turn.content or call.unparsed:
        raise BadPair("messages: the form has one call a turn, with parsed arguments and no text")
    value = f'{{"name":{compact_json(call.name)},"arguments":{call.arguments}}}'
    return {"from": CALL, "value": value}


LLAMA_FACTORY = PairFormat(
    "llama-factory",
    "LLaMA-Factory, ShareGPT: conversations with chosen and rejected, or with kto_tag; system, tools",
    lambda row: "conversations" in row and ("chosen" in row or "kto_tag" in row),
    _read,
    _write,
    _write_answer,
    tools=True,
)
