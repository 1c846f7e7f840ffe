"""Texts that a model wrote, within an answer's JSON: where they stand, and what rules find there. Pure."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from services.router.filter_rules import Match, RuleSet

ARGUMENTS = "arguments"
"""Arguments of a tool, as JSON in a text."""
INPUT = "input"
"""Arguments of a tool, as a text or as an object whose texts are all the model's."""
PARTIAL_JSON = "partial_json"
"""A piece of a tool's arguments in a stream of the Messages API."""
JSON_TEXTS = frozenset((ARGUMENTS, PARTIAL_JSON, "response.function_call_arguments.delta"))
"""Texts that are JSON themselves, by their field or by the type of their event."""
TEXTS = frozenset(
    (
        *("content", "text", "reasoning", "reasoning_content", "refusal", "thinking"),
        *(ARGUMENTS, INPUT, PARTIAL_JSON),
    )
)
"""Fields of an answer that hold what the model wrote."""
TOKENS = frozenset(("logprobs", "token_ids"))
"""Fields of an answer that hold it once more, token by token."""
LONGEST_ESCAPE = len("\\ud83d\\ude00")
"""Characters of JSON that may stand for one."""
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}"
    r'|["\\/bfnrt])'
)


def answer_texts(value: Any, *, every: bool = False) -> Iterator[tuple[Any, Any]]:
    """Holder and key of each text that the model wrote. With `every`, all texts are."""
    if isinstance(value, dict):
        places = value.items()
    else:
        places = enumerate(value) if isinstance(value, list) else ()
    for key, one in places:
        if isinstance(one, str):
            if every or key in TEXTS:
                yield value, key
        else:
            yield from answer_texts(one, every=every or key == INPUT)


def drop_tokens(value: Any) -> None:
    """Remove the tokens one by one, which would tell what was masked."""
    if isinstance(value, dict):
        for name in TOKENS & value.keys():
            del value[name]
        value = list(value.values())
    for one in value if isinstance(value, list) else ():
        drop_tokens(one)


def text_matches(
    rules: RuleSet, name: object, text: str, begin: int = 0, *, whole: bool = True
) -> list[Match]:
    """What the rules find in a text, see `RuleSet.matches`; of JSON, by what its escapes mean."""
    if name not in JSON_TEXTS or "\\" not in text:
        return rules.matches(text, begin, whole=whole)
    plain, places = _unescaped(text)
    found = rules.matches(plain, bisect_left(places, begin), whole=whole)
    return [Match(places[start], places[end], rule) for start, end, rule in found]


def _unescaped(text: str) -> tuple[str, list[int]]:
    """JSON with each escape as its character; and where each character stood, the end included."""
    parts: list[str] = []
    places: list[int] = []
    at = 0
    for escape in _ESCAPE.finditer(text):
        start, end = escape.span()
        parts += (text[at:start], json.loads(f'"{escape[0]}"'))
        places += range(at, start + 1)
        at = end
    return "".join((*parts, text[at:])), [*places, *range(at, len(text) + 1)]
