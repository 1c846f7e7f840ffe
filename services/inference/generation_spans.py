"""Spans of what this service makes and scores, and of the stages of moderated generation."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from shared.clock import Clock
from shared.observability.span_contexts import SpanContexts
from shared.observability.spans import AttributeValue, FinishedSpan, SpanKind, Spans, nanoseconds
from shared.observability.tracing import (
    derived_traceparent,
    interaction_traceparent,
    is_trace_id,
    rebuilt_traceparent,
)


class GenerationSpans:
    """Spans of blocks of code. Attributes that become known within a block may be added to its dict."""

    def __init__(self, spans: Spans, clock: Clock) -> None:
        self._spans = spans
        self._contexts = SpanContexts(spans)
        self._clock = clock

    @contextmanager
    def request(
        self, name: str, given: str | None, attributes: dict[str, AttributeValue]
    ) -> Iterator[str]:
        """The span of a request: in the trace of the header `given`, else in one of its own.

        Yields its `traceparent`.
        """
        parent = rebuilt_traceparent(given or "")
        context = self._contexts.begin(secrets.token_hex(16), parent)
        with self._recorded(name, context, parent, SpanKind.server, attributes):
            yield context

    @contextmanager
    def about(
        self, name: str, trace_id: str, cause: str, attributes: dict[str, AttributeValue]
    ) -> Iterator[str]:
        """The span of what is made for an answer: in its trace, under its interaction.

        Yields its `traceparent`, which follows from `cause`, so that a repeat has the same; empty where
        `trace_id` is none of Trace Context.
        """
        if not is_trace_id(trace_id):
            yield ""
            return
        context = derived_traceparent(trace_id, cause, sampled=self._spans.sampled(trace_id))
        parent = interaction_traceparent(trace_id)
        with self._recorded(name, context, parent, SpanKind.consumer, attributes):
            yield context

    @contextmanager
    def stage(self, name: str, parent: str, attributes: dict[str, AttributeValue]) -> Iterator[str]:
        """The span of one stage under `parent`; yields the `traceparent` for who is asked."""
        context = self._contexts.child(parent)
        with self._recorded(name, context, parent, SpanKind.client, attributes):
            yield context

    @contextmanager
    def _recorded(
        self,
        name: str,
        context: str,
        parent: str,
        kind: SpanKind,
        attributes: dict[str, AttributeValue],
    ) -> Iterator[None]:
        start_ns, error = nanoseconds(self._clock.now()), ""
        try:
            yield
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            self._spans.record(
                FinishedSpan(
                    name=name,
                    context=context,
                    start_ns=start_ns,
                    end_ns=nanoseconds(self._clock.now()),
                    kind=kind,
                    parent=parent,
                    attributes=attributes,
                    error=error,
                )
            )
