"""A job's progress on `training.runs.v1`: every change of phase, and steps at a bounded rate."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from services.training.metrics import TrainingMetrics
from services.training.outcome import JobOutcome
from services.training.trainers.job import Stage, StageProgress
from shared.clock import Clock
from shared.contracts.events.training import RunPhase, TrainingProgress, TrainingRequested
from shared.contracts.topics import TRAINING_RUNS
from shared.kafka.log import EventLog, LogUnavailable
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)

STEP_INTERVAL_S = 2.0
STEP_CHANGE = 0.01
PREPARED_INTERVAL_S = 15.0
"""Between two words on rows that are prepared or a model that is loaded, as the topic keeps them for
ever."""
MINUTE_S = 60.0
MAX_MESSAGE = 2000

FITTED = (0.01, 0.05)
"""From where to where in [0, 1] of a job its rows are taken and fitted."""
TRIED = 0.95
"""Where in [0, 1] of a job its last attempt ends; each attempt has an equal part before it."""
_SHARES: dict[Stage, tuple[float, float]] = {
    "reward": (0.0, 0.15),
    "proxy": (0.15, 0.30),
    "sft": (0.0, 0.70),
    "dpo": (0.15, 0.70),
    "kto": (0.15, 0.70),
    "grpo": (0.30, 0.70),
    "rloo": (0.30, 0.70),
    "ppo": (0.30, 0.70),
    "online_dpo": (0.30, 0.70),
    "evaluate": (0.70, 0.86),
    "quality": (0.86, 0.90),
    "drift": (0.90, 0.92),
    "harness": (0.92, 0.95),
    "fingerprint": (0.95, 1.0),
}
"""From where to where in [0, 1] each stage takes an attempt."""
_PHASES: dict[Stage, RunPhase] = {
    "fit": RunPhase.snapshot,
    "evaluate": RunPhase.judging,
    "quality": RunPhase.judging,
    "drift": RunPhase.judging,
    "harness": RunPhase.judging,
}
_OF_ATTEMPT = frozenset({RunPhase.training, RunPhase.judging, RunPhase.gating})


class ProgressReporter:
    """Tells the log how far one job is. Steps may get lost, the final word may not."""

    def __init__(
        self,
        event_log: EventLog,
        clock: Clock,
        metrics: TrainingMetrics,
        job: TrainingRequested,
        *,
        attempts: int = 1,
    ) -> None:
        """`attempts` are the most that the job may have."""
        self._log = event_log
        self._clock = clock
        self._metrics = metrics
        self._gauge = metrics.progress.labels(job.method.value)
        self._job = job
        self._said_at = 0.0
        self._said = 0.0
        self._phase = RunPhase.accepted
        self._sent = 0
        self._attempts = attempts
        self._first: tuple[StageProgress, float] | None = None
        self._last: tuple[str, float] | None = None
        self.attempt = 1

    async def enter(self, phase: RunPhase, progress: float, message: str = "") -> None:
        """Tell of a new phase; `progress` of the attempt where one is made, else of the job."""
        self._phase = phase
        if phase in _OF_ATTEMPT:
            progress = self._of_job(progress)
            message = message or self._attempt
        await self._tell(progress, message, {})

    async def step(self, step: StageProgress) -> None:
        """Tell of a trainer's step, unless the last word is too young or too near.

        Rows that are prepared and models that are loaded are no step: they are told of, and the job
        gets no further by them.
        """
        self._note_time(step)
        left = self._time_left(step)
        done = 0.0 if step.preparing else min(1.0, step.done / max(1, step.total))
        first, last = _SHARES.get(step.stage, FITTED)
        ratio = first + (last - first) * done
        if step.stage in _SHARES:
            ratio = self._of_job(ratio)
        if step.preparing:
            ratio = max(ratio, self._said)
        self._gauge.set(ratio)
        phase = _PHASES.get(step.stage, RunPhase.training)
        changed = phase is not self._phase and step.stage not in ("drift", "fingerprint")
        since = self._clock.monotonic() - self._said_at
        due = since >= STEP_INTERVAL_S and abs(ratio - self._said) >= STEP_CHANGE
        if not changed and not (since >= PREPARED_INTERVAL_S if step.preparing else due):
            return
        if changed:
            self._phase = phase
        figures = {"loss": step.loss} if step.loss is not None else {}
        where = f"{step.stage}: {_counted(step)}{left}"
        await self._tell(ratio, f"{self._attempt}{where}", figures)

    async def finish(self, outcome: JobOutcome) -> None:
        """The final word, which ends the job.

        Raises:
            LogUnavailable: it was not acknowledged; the job has not ended.

        """
        event = self._event(
            outcome.phase, 1.0, outcome.message, outcome.metrics or {}, outcome.version
        ).model_copy(
            update={
                "checks": outcome.checks,
                "report_uri": outcome.report_uri,
                "dataset": outcome.dataset,
            }
        )
        await self._log.publish(
            TRAINING_RUNS, key=self._job.job_id, event=event, event_id=f"{self._job.job_id}:end"
        )
        self._metrics.no_job(self._job.method.value)

    @property
    def _attempt(self) -> str:
        """Which attempt it is, for people; empty where there can be one alone."""
        return f"attempt {self.attempt} of at most {self._attempts}: " if self._attempts > 1 else ""

    def _note_time(self, step: StageProgress) -> None:
        """Count the time since the stage's step before; what lies between two stages is of neither."""
        now = self._clock.monotonic()
        if self._last is not None and self._last[0] == step.stage:
            self._metrics.stage_seconds.labels(step.stage).inc(now - self._last[1])
        self._last = step.stage, now
        self._metrics.attempt.set(self.attempt)

    def _time_left(self, step: StageProgress) -> str:
        """About how long the stage still takes, by its pace so far; empty at its first step.

        Of rows that are prepared it is this pass over them.
        """
        now = self._clock.monotonic()
        first, since = self._first or (step, now)
        same = (first.stage, first.preparing, first.total) == (
            step.stage,
            step.preparing,
            step.total,
        )
        if not same or step.done <= first.done:
            self._first = step, now
            self._metrics.stage_left.set(0)
            return ""
        if not step.total:
            return ""
        left_s = (now - since) / (step.done - first.done) * max(0, step.total - step.done)
        self._metrics.stage_left.set(left_s)
        about = f"{left_s:.0f} s" if left_s < 2 * MINUTE_S else f"{left_s / MINUTE_S:.0f} min"
        return f", about {about} left"

    def _of_job(self, progress: float) -> float:
        """Progress of the job at this progress of the present attempt."""
        done = (self.attempt - 1 + progress) / max(self._attempts, self.attempt)
        return FITTED[1] + (TRIED - FITTED[1]) * done

    async def _tell(self, progress: float, message: str, figures: Mapping[str, float]) -> None:
        progress = max(progress, self._said)
        self._said_at, self._said = self._clock.monotonic(), progress
        self._gauge.set(progress)
        self._sent += 1
        event = self._event(self._phase, progress, message, figures)
        moment = int(event.at.timestamp() * 1000)
        try:
            await self._log.publish(
                TRAINING_RUNS,
                key=self._job.job_id,
                event=event,
                event_id=f"{self._job.job_id}:{moment}:{self._sent}",
            )
        except LogUnavailable as error:
            log.warning(
                Unavailable.kafka, during="progress", job_id=self._job.job_id, error=str(error)
            )

    def _event(
        self,
        phase: RunPhase,
        progress: float,
        message: str,
        figures: Mapping[str, float],
        version: str = "",
    ) -> TrainingProgress:
        return TrainingProgress(
            job_id=self._job.job_id,
            model=self._job.model,
            method=self._job.method,
            algorithm=self._job.algorithm,
            version=version or self._job.version,
            phase=phase,
            attempt=self.attempt,
            progress=progress,
            metrics=dict(figures),
            message=message[:MAX_MESSAGE],
            at=self._clock.now(),
        )


def _counted(step: StageProgress) -> str:
    """What a step, rows that are prepared or a load has come to, for people."""
    total = f" of {step.total}" if step.total else ""
    if not step.preparing:
        return f"step {step.done}{total}"
    if step.loading_s is None:
        return f"{step.preparing}: row {step.done}{total}"
    tensors = f"tensor {step.done}{total}, " if step.total else ""
    return f"{step.preparing}: {tensors}{step.loading_s:.0f} s so far"
