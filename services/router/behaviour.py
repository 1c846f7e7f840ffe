"""Behaviour of an answer, classified by rule: refused, cut, tools called, their calls invalid.

Cheap rules on the text, the same for both arms: a rule that is often wrong is so on both, and the
judge compares their shares. Refusals are told by how an answer begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.router.response import EngineResponse
from shared.contracts.conversation import stored_calls
from shared.refusals import is_refusal

LENGTH_SCALE = 8_192
"""Characters that count as length 1; longer answers count no more."""
BEHAVIOURS = ("answered", "refused", "cut", "tool_called", "tool_failed")


@dataclass(frozen=True, slots=True)
class AnswerBehaviour:
    """What one complete answer did.

    `length` is that of text and arguments, in [0, 1], a share of LENGTH_SCALE characters.
    """

    kinds: tuple[str, ...]
    length: float


def behaviour_of(answer: EngineResponse) -> AnswerBehaviour:
    """Classify an answer by its text, its tool calls and why it ended.

    A call is invalid where it has no function name or its arguments are no JSON object.
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
    length = len(text) + sum(len(call["arguments"]) for call in calls)
    return AnswerBehaviour(tuple(kinds), min(length, LENGTH_SCALE) / LENGTH_SCALE)
