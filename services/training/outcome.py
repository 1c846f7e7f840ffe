"""Outcome of a training job: the phase it ended in and the message that says why. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.contracts.events.training import RunPhase
from shared.contracts.events.versions import DatasetRef, GateCheck, GateResult, VersionRecord


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    phase: RunPhase
    message: str
    version: str = ""
    metrics: Mapping[str, float] | None = None
    checks: tuple[GateCheck, ...] = ()
    report_uri: str = ""
    attempt: int = 0
    """Whose figures these are; 0: the last one's."""
    dataset: DatasetRef | None = None
    """Where the job built a dataset alone."""


def failed(message: str) -> JobOutcome:
    """A job that could not be done."""
    return JobOutcome(RunPhase.failed, message)


def succeeded(record: VersionRecord) -> JobOutcome:
    """A job whose version is registered."""
    gate = record.gate
    how = "the gate passed" if gate.passed else f"the gate was overridden by {gate.overridden_by}"
    message = f"{record.version}: {how}{_left_out(record.dataset.refused)}"
    return JobOutcome(
        RunPhase.succeeded,
        message,
        record.version,
        dict(record.metrics),
        gate.checks,
        record.adapter_uri,
    )


def built(dataset: DatasetRef) -> JobOutcome:
    """A job that stored a dataset and trained nothing."""
    message = f"{dataset.dataset_id}: {dataset.rows} rows{_left_out(dataset.refused)}"
    return JobOutcome(RunPhase.succeeded, message, dataset=dataset)


def rejected(
    gate: GateResult,
    figures: Mapping[str, float],
    diagnosis: Sequence[str],
    left_out: Mapping[str, int],
    *,
    report_uri: str = "",
    attempt: int = 0,
) -> JobOutcome:
    """A job whose candidates the gate refused, with the diagnosis and the attempt that it is of."""
    message = "; ".join(diagnosis) + _left_out(left_out)
    return JobOutcome(
        RunPhase.rejected,
        message,
        metrics=figures,
        checks=gate.checks,
        report_uri=report_uri,
        attempt=attempt,
    )


def _left_out(refused: Mapping[str, int]) -> str:
    rows = ", ".join(f"{count} {reason}" for reason, count in refused.items())
    return f"; rows left out: {rows}" if rows else ""
