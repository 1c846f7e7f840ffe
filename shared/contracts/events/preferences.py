"""Events that training reads: preference pairs, unpaired examples and retractions."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from shared.contracts.events.base import (
    AnswerTurn,
    Context,
    Cut,
    Event,
    Identifier,
    Message,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    Tool,
    Untrainable,
    UntrainableReasons,
    unless_empty,
)
from shared.withheld import UNCHECKED

ERASED = "erased"
"""Reason of a retraction that an erasure wrote: stored datasets lose the row too."""


class PairSource(StrEnum):
    """Source of a preference pair."""

    vote = "vote"
    correction = "correction"
    preference = "preference"
    ratings = "ratings"
    demonstration = "demonstration"
    synthetic = "synthetic"


class PreferencePair(PersonalEvent):
    """Chosen and rejected answers to one prompt, self-contained. Key: pair_id."""

    ce_type: ClassVar[str] = "ratchet.preference.pair.v1"
    pair_id: Identifier
    tenant: Identifier
    model: Identifier
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = unless_empty(())
    chosen: Text
    rejected: Text
    chosen_turn: AnswerTurn = unless_empty(None)
    rejected_turn: AnswerTurn = unless_empty(None)
    untrainable: UntrainableReasons = unless_empty(())
    chosen_cut: Cut = False
    rejected_cut: Cut = False
    chosen_version: OptionalIdentifier = ""
    rejected_version: OptionalIdentifier = ""
    chosen_side: Literal["", "left", "right"] = unless_empty(
        "", description="where a vote's chosen answer stood; sides are random"
    )
    source: PairSource
    panel: Literal["", "judge"] = ""
    causes: tuple[str, ...] = Field(description="feedback_id:revision of each cause")
    traces: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()
    askers: tuple[str, ...] = unless_empty(
        (), description="who asked what was answered, by user id; see raters for who judged it"
    )
    context: Context = Context()
    created_at: AwareDatetime

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why nothing is trained on it: `untrainable`, and texts of the feedback that were withheld."""
        turns = (*self.messages, self.chosen_turn, self.rejected_turn)
        return _reasons(self.untrainable, (self.chosen, self.rejected), (*turns, *self.tools))


class UnpairedExample(PersonalEvent):
    """One answer with a good/bad label (KTO), self-contained. Key: pair_id."""

    ce_type: ClassVar[str] = "ratchet.preference.unpaired.v1"
    pair_id: Identifier
    tenant: Identifier
    model: Identifier
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = unless_empty(())
    completion: Text
    answer: AnswerTurn = unless_empty(None)
    untrainable: UntrainableReasons = unless_empty(())
    cut: Cut = False
    label: bool
    version: OptionalIdentifier = ""
    causes: tuple[str, ...]
    traces: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()
    askers: tuple[str, ...] = unless_empty(
        (), description="who asked what was answered, by user id; see raters for who judged it"
    )
    context: Context = Context()
    created_at: AwareDatetime

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why nothing is trained on it: `untrainable`, and texts that were withheld."""
        parts = (*self.messages, self.answer, *self.tools)
        return _reasons(self.untrainable, (self.completion,), parts)


def _reasons(
    untrainable: tuple[str, ...],
    answers: Collection[str],
    parts: Collection[Message | Tool | None],
) -> tuple[str, ...]:
    if UNCHECKED in answers or any(part is not None and part.withheld for part in parts):
        return tuple(dict.fromkeys((*untrainable, Untrainable.unchecked.value)))
    return untrainable


class PreferenceRetracted(Event):
    """Retracts a pair or example: its feedback was edited, withdrawn or erased. Key: pair_id."""

    ce_type: ClassVar[str] = "ratchet.preference.retracted.v1"
    pair_id: Identifier
    tenant: Identifier
    reason: str = Field(max_length=200)
    created_at: AwareDatetime
