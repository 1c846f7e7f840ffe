"""Spans of decisions: all of a rollout in one trace, linked to the run that made the candidate."""

from __future__ import annotations

from shared.contracts.events.rollouts import Decision, DecisionKind
from shared.observability import span_attributes as names
from shared.observability.spans import FinishedSpan, Spans, nanoseconds
from shared.observability.tracing import derived_trace_id, derived_traceparent, run_traceparent
from shared.registry.versions import Registry


class DecisionSpans:
    """Exports a span for each decision that was written. A hold changes nothing and has none."""

    def __init__(self, spans: Spans, registry: Registry) -> None:
        self._spans = spans
        self._registry = registry

    def announce(self, decision: Decision) -> None:
        """Export a decision's span."""
        trace_id = derived_trace_id(decision.rollout_id or decision.model)
        if decision.kind is DecisionKind.hold or not self._spans.sampled(trace_id):
            return
        record = self._registry.adapter(decision.candidate or decision.stable)
        at_ns = nanoseconds(decision.at)
        self._spans.record(
            FinishedSpan(
                name=f"decide {decision.kind.value}",
                context=derived_traceparent(trace_id, decision.decision_id, sampled=True),
                start_ns=at_ns,
                end_ns=at_ns,
                links=[run_traceparent(record.job_id, sampled=True)] if record else (),
                attributes={
                    names.REQUEST_MODEL: decision.model,
                    names.ROLLOUT: decision.rollout_id,
                    names.VERSION: decision.candidate or decision.stable,
                    names.DECISION: decision.kind.value,
                    names.OUTCOME: decision.outcome.value if decision.outcome else "",
                },
            )
        )
