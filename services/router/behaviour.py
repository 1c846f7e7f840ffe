"""Behaviour of an answer, classified by rule: refused, cut, asked back, tools called and so on.

Cheap rules on the text, the same for both arms: a rule that is often wrong is so on both, and the
judge compares their shares. Refusals are told by how an answer begins, clarifying questions by how
a short one ends.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from services.router.language import language_of
from services.router.response import EngineResponse
from shared.contracts.conversation import stored_calls
from shared.refusals import is_refusal

LENGTH_SCALE = 8_192
"""Characters that count as length 1; longer answers count no more."""
BEHAVIOURS = (
    *("answered", "refused", "cut", "tool_called", "tool_failed"),
    *("asked_back", "language_switched"),
)
CLARIFYING_CHARACTERS = 300
"""A longer answer that ends with a question has answered before."""
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")
_OFFER = re.compile(
    r"(?i)\b(?:anything|something|what)\s+else\b|\bmore\s+help\b|\bnoch\s+(?:etwas|was)\b"
    r"|\bsonst\s+noch\b|\bautre\s+chose\b|\balgo\s+m[a\u00e1]s\b|\baltro\b"
)
"""An offer of more help is no clarifying question."""


class AnswerBehaviour(NamedTuple):
    """What one complete answer did.

    `length` is that of text and arguments, in [0, 1], a share of LENGTH_SCALE characters.
    """

    kinds: tuple[str, ...]
    length: float


def behaviour_of(answer: EngineResponse, asked: str = "") -> AnswerBehaviour:
    """Classify an answer by its text, its tool calls, why it ended and what the user had asked.

    A call is invalid where it has no function name or its arguments are no JSON object. The
    language counts as switched where those of `asked` and of the answer are known and differ.
    """
    text = answer.completion
    calls = stored_calls(answer.more) if answer.more else []
    kinds = ["answered"]
    if answer.finish_reason == "length":
        kinds.append("cut")
    if calls:
        kinds.append("tool_called")
        if any(call.get("unparsed") or not call["name"] for call in calls):
            kinds.append("tool_failed")
    elif answer.finish_reason != "tool_calls" and is_refusal(text):
        kinds.append("refused")
    if not calls and _asks_back(text):
        kinds.append("asked_back")
    if _language_switched(asked, text):
        kinds.append("language_switched")
    length = len(text) + sum(len(call["arguments"]) for call in calls)
    return AnswerBehaviour(tuple(kinds), min(length, LENGTH_SCALE) / LENGTH_SCALE)


def _asks_back(text: str) -> bool:
    """Whether a short answer ends with a question that is no offer of more help."""
    if len(text) > CLARIFYING_CHARACTERS:
        return False
    return text.rstrip().endswith(_QUESTION_MARKS) and _OFFER.search(text) is None


def _language_switched(asked: str, text: str) -> bool:
    wanted = language_of(asked)
    return bool(wanted) and language_of(text) not in ("", wanted)
