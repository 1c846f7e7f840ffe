"""What folding one event gives: a row, contributions to the aggregates, and outputs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from services.aggregator.contributions import AudienceCounted, Contribution
from shared.contracts.events.base import Context, Event
from shared.uuid5 import uuid5_text

RowT = TypeVar("RowT")

NAMESPACE = uuid.UUID("a9c2f5d0-5e2b-5c1b-9a51-6f0c51d3a7e4")
"""Namespace of the ids that outputs take from their causes."""
_NAMESPACE_BYTES = NAMESPACE.bytes


UNKNOWN = "unknown"
"""Label value of an audience that the context does not name."""


@dataclass(frozen=True, slots=True)
class Output:
    """An event to write. `event_id` follows from the cause alone, so repeats have the same."""

    topic: str
    key: str
    event: Event
    event_id: str
    time: datetime


@dataclass(frozen=True, slots=True)
class FoldRules:
    """The settings that reducers depend on."""

    horizon_s: float = 30 * 86_400
    """How long feedback waits for its interaction, in event time."""
    unknown_trace_s: float = 300.0
    """How long feedback waits until its trace is taken for one that no router made."""
    rated_s: float = 30 * 86_400
    """How long answers to a prompt and a user's counted scores are kept, in event time."""
    scores_per_day: int = 3
    """Scores counted per user, rollout and day (design section 7)."""
    tenant_bytes: int = 0
    """Bytes of a tenant's rows over which texts without feedback go; 0: no bound. Of a partition's rules,
    its share."""
    signals_judge: bool = False
    """What a signal implies counts as an answer's satisfaction for the judge."""
    signals_teach: bool = False
    """Signals that imply a good or a bad answer become unpaired examples."""
    prompt_ignores: tuple[str, ...] = ()
    """Values of PromptRule: what a system prompt may say differently each time."""
    segments: frozenset[str] = frozenset()
    """Values of the segment label; any other given one is `other`."""
    categories: frozenset[str] = frozenset()
    """Values of the category label of audiences; any other given one is `other`."""
    locales: frozenset[str] = frozenset()
    """Values of the locale label of audiences: `en-GB` is itself, else `en`, else `other`."""

    def segment(self, given: str) -> str:
        """The label value of a segment, as the router has it."""
        return given if not given or given in self.segments else "other"

    def audience(self, what: str, context: Context) -> AudienceCounted:
        """A request or feedback by the labels of its context; what is not given is `unknown`."""
        category, locale = context.category, context.locale
        if category and category not in self.categories:
            category = "other"
        if locale and locale not in self.locales:
            language = locale.partition("-")[0]
            locale = language if language in self.locales else "other"
        segment = self.segment(context.segment)
        return AudienceCounted(what, category or UNKNOWN, locale or UNKNOWN, segment or UNKNOWN)


@dataclass(slots=True)
class Fold(Generic[RowT]):
    """The row after an event, as it was where the event says nothing new."""

    row: RowT
    contributions: list[Contribution] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)


def cause_id(*parts: str) -> str:
    """uuid5 of a cause: the same parts give the same id, other parts another."""
    return uuid5_text(_NAMESPACE_BYTES, "\x00".join(parts))
