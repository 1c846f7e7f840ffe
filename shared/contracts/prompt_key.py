"""Prompt key: whether two prompts are the same question, for pairs and for datasets alike.

The key is over the whole conversation: turns, tool calls and results, tool definitions, and media by
digest. Rows of the aggregator and the held-out share of datasets follow from it.
`prompt-key-vectors.json` holds examples; whoever changes the normal form raises the version and adds
vectors.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import Any

from shared.contracts.conversation import read_json
from shared.contracts.events.base import Message, Tool, prompt_text

PROMPT_KEY_VERSION = 2
"""Of the normal form and the hash over it. Keys of conversations that are more than text begin with
it; text alone has the keys of version 1, so what was stored under them is met again."""


class PromptRule(StrEnum):
    """What a system prompt may say differently each time without being another prompt."""

    clock = "clock"
    """Dates and times of lines that say what time it is."""
    ids = "ids"
    """UUIDs, and hexadecimal or decimal numbers of 16 and 8 digits and more."""


_SYSTEM = frozenset({"system", "developer"})
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_CLOCK_WORD = re.compile(
    r"\b(?:now|today|tonight|current(?:ly)?|date(?:time)?|time(?:stamp)?|it is)\b", re.IGNORECASE
)
_MOMENT = re.compile(
    r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
    r"|\b\d{1,4}[./]\d{1,2}[./]\d{1,4}\b"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?(?:\s?[ap]\.?m\b\.?)?"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
    rf"|\b{_MONTH}\s{_DAY}(?:,?\s\d{{4}})?\b|\b(?:{_DAY}\s(?:of\s)?)?{_MONTH}(?:,?\s\d{{4}})?\b"
    r"|\b\d{10,13}\b",
    re.IGNORECASE,
)
_ID = re.compile(
    r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b(?=[a-f]*\d)[0-9a-f]{16,64}\b|\b\d{8,64}\b",
    re.IGNORECASE,
)


def prompt_key(
    tenant: str,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    ignored: Collection[str] = (),
) -> str:
    """Hash of the tenant and the prompt's normal form: 32 hexadecimal digits.

    Of a conversation that is more than text, the version and a dash stand before them.

    Args:
        tenant: Whose prompt it is; tenants never meet.
        messages: The turns, without the answer.
        tools: The tools that the model could call.
        ignored: Values of PromptRule, for what a system prompt may say differently each time.

    """
    key = digest(tenant, normal_prompt(messages, tools, ignored))
    return key if _is_text(messages, tools) else f"{PROMPT_KEY_VERSION}-{key}"


def normal_prompt(
    messages: Sequence[Message], tools: Sequence[Tool] = (), ignored: Collection[str] = ()
) -> str:
    """The prompt as one text in normal form: equal for prompts that ask the same.

    A conversation that is more than text is JSON, in which ids of tool calls are their numbers.
    """
    if ignored:
        messages = [_settled(turn, ignored) for turn in messages]
    if _is_text(messages, tools):
        return normal_text(prompt_text(tuple(messages)))
    numbers: dict[str, int] = {}
    turns = [_normal_turn(turn, numbers) for turn in messages]
    definitions = sorted(
        [tool.name, normal_text(tool.description), _sorted_json(tool.parameters)] for tool in tools
    )
    return json.dumps([turns, definitions], ensure_ascii=False, sort_keys=True)


def normal_text(text: str) -> str:
    """The text without its case, width (NFKC) and repeated white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(*parts: str) -> str:
    """128-bit BLAKE2b of the NUL-joined parts in UTF-8, as hexadecimal digits."""
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()


def _is_text(messages: Iterable[Message], tools: Sequence[Tool]) -> bool:
    return not tools and all(turn.is_text for turn in messages)


def _normal_turn(turn: Message, numbers: dict[str, int]) -> list[Any]:
    """Everything of a turn, the parts that it lacks left empty."""

    def number(call_id: str) -> int:
        return numbers.setdefault(call_id, len(numbers)) if call_id else -1

    calls = [
        [number(call.id), call.name, call.unparsed, _sorted_json(call.arguments)]
        for call in turn.tool_calls
    ]
    parts = [
        [part.type, normal_text(part.text), part.sha256, part.reference] for part in turn.parts
    ]
    texts = (turn.content, turn.name, turn.reasoning, turn.refusal)
    return [turn.role, *map(normal_text, texts), calls, number(turn.tool_call_id), parts]


def _sorted_json(text: str) -> Any:
    """JSON as a value, whose keys have no order; a text that is none as it is."""
    try:
        return read_json(text)
    except ValueError:
        return normal_text(text)


def _settled(turn: Message, ignored: Collection[str]) -> Message:
    """A system turn without what may differ each time."""
    if turn.role not in _SYSTEM:
        return turn
    lines = turn.content.split("\n")
    if PromptRule.ids in ignored:
        lines = [_ID.sub("<id>", line) for line in lines]
    if PromptRule.clock in ignored:
        lines = [
            _MOMENT.sub("<time>", line) if _CLOCK_WORD.search(line) else line for line in lines
        ]
    content = "\n".join(lines)
    return turn if content == turn.content else turn.model_copy(update={"content": content})
