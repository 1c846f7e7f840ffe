"""Spans of training jobs: a run with its dataset, which links to the pairs that it has."""

from __future__ import annotations

from services.training.dataset_manifest import Dataset
from services.training.outcome import JobOutcome
from shared.clock import Clock
from shared.contracts.events.training import RunPhase, TrainingRequested
from shared.observability import span_attributes as names
from shared.observability.spans import FinishedSpan, Spans, nanoseconds
from shared.observability.tracing import (
    derived_trace_id,
    derived_traceparent,
    is_sampled,
    run_traceparent,
)


class RunSpans:
    """Exports the spans of jobs. A job's trace follows from its id, so other services link to it."""

    def __init__(self, spans: Spans, clock: Clock) -> None:
        self._spans = spans
        self._clock = clock

    def now_ns(self) -> int:
        """The present moment in nanoseconds since the epoch."""
        return nanoseconds(self._clock.now())

    def context(self, job_id: str) -> str:
        """The `traceparent` of a job's run, for what the run writes."""
        return run_traceparent(job_id, sampled=self._spans.sampled(derived_trace_id(job_id)))

    def snapshot(self, job: TrainingRequested, dataset: Dataset, start_ns: int) -> None:
        """Export the span of a dataset that was taken since `start_ns`."""
        manifest = dataset.manifest
        run = self.context(job.job_id)
        self._spans.record(
            FinishedSpan(
                name="dataset",
                context=derived_traceparent(
                    run[3:35], manifest.dataset_id, sampled=is_sampled(run)
                ),
                start_ns=start_ns,
                end_ns=self.now_ns(),
                parent=run,
                links=dataset.traceparents,
                attributes={
                    names.JOB_ID: job.job_id,
                    names.DATASET: manifest.dataset_id,
                    names.ROWS: sum(file.rows for file in manifest.files.values()),
                },
            )
        )

    def ended(self, job: TrainingRequested, outcome: JobOutcome) -> None:
        """Export the span of a run, from the request to the final word."""
        self._spans.record(
            FinishedSpan(
                name=f"train {job.method.value}",
                context=self.context(job.job_id),
                start_ns=min(nanoseconds(job.requested_at), self.now_ns()),
                end_ns=self.now_ns(),
                attributes={
                    names.JOB_ID: job.job_id,
                    names.REQUEST_MODEL: job.model,
                    names.VERSION: outcome.version,
                    names.OUTCOME: outcome.phase.value,
                },
                error=outcome.message if outcome.phase is RunPhase.failed else "",
            )
        )
