"""Spans (OpenTelemetry): what a service did is told once it is over.

Span ids stand in `traceparent` headers, or follow from ids on the log (`derived_traceparent`), so a
span is built at its end from what is known anyway, and what is not sampled costs one look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from shared.observability.tracing import is_sampled

AttributeValue = str | bool | int | float | Sequence[str]

NS = 1_000_000_000
MAX_LINKS = 128
"""Links of one span, the specification's default: a dataset has more pairs than that."""
_LOW_64 = slice(16, 32)
"""Hex digits of a trace id that a ratio is applied to."""


class SpanKind(StrEnum):
    """OpenTelemetry's kinds of spans that occur here."""

    internal = "INTERNAL"
    server = "SERVER"
    client = "CLIENT"
    producer = "PRODUCER"
    consumer = "CONSUMER"


@dataclass(slots=True)
class FinishedSpan:
    """A span that is over. `context`, `parent` and `links` are `traceparent` texts.

    `parent` is valid or empty; links that are not valid are left out.
    `start_ns` and `end_ns` are nanoseconds since the epoch; `error` is empty where it went well.
    """

    name: str
    context: str
    start_ns: int
    end_ns: int
    kind: SpanKind = SpanKind.internal
    parent: str = ""
    links: Iterable[str] = ()
    attributes: Mapping[str, AttributeValue] | None = None
    error: str = ""


class SpanExport(Protocol):
    """Where finished spans go. It queues a bounded number and never waits."""

    def export(self, span: FinishedSpan) -> None:
        """Queue a span; a full queue drops one."""
        ...

    def close(self) -> None:
        """Send what is queued, for a bounded time."""
        ...


class HeadSampling:
    """Head sampling as by OpenTelemetry's `traceidratio`: by a trace id's lower 64 bits."""

    def __init__(self, ratio: float = 1.0, *, parent_based: bool = True) -> None:
        """Of traces without a parent `ratio` in [0, 1] is sampled.

        Others are sampled by their parent's flag if `parent_based`, else by their id, too.
        """
        self._bound = round(ratio * 2**64)
        self._parent_based = parent_based

    def sampled(self, trace_id: str, parent: str = "") -> bool:
        """Whether a trace is sampled: alike in every service that has the same settings."""
        if parent and self._parent_based:
            return is_sampled(parent)
        return int(trace_id[_LOW_64], 16) < self._bound


class Spans:
    """Samples traces and exports their spans; without an export, nothing is sampled."""

    def __init__(
        self, export: SpanExport | None = None, sampling: HeadSampling | None = None
    ) -> None:
        self._export = export
        self._sampling = sampling or HeadSampling()

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._export is not None

    def sampled(self, trace_id: str, parent: str = "") -> bool:
        """Whether a trace of 32 hex digits is exported; `parent` is a valid `traceparent` or empty."""
        return self._export is not None and self._sampling.sampled(trace_id, parent)

    def record(self, span: FinishedSpan) -> None:
        """Export a span, unless its context is not sampled."""
        if self._export is not None and is_sampled(span.context):
            self._export.export(span)

    def close(self) -> None:
        """Send what is queued; what an absent receiver does not take in time is lost."""
        if self._export is not None:
            self._export.close()


OFF = Spans()
"""No export."""


def nanoseconds(moment: datetime) -> int:
    """A moment in nanoseconds since the epoch."""
    return int(moment.timestamp() * NS)
