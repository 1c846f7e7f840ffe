"""Metrics of training (design, section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.training.jobs import FINAL
from services.training.outcome import JobOutcome
from services.training.plans import WeekProgress
from services.training.trainers.job import Stage
from shared.contracts.events.training import TrainingMethod

CANDIDATE_FIGURES: tuple[str, ...] = (
    "kl",
    "kl_first",
    "length_ratio",
    "win_rate",
    "data_on_policy_share",
)


class TrainingMetrics:
    """The service's metrics on a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.progress = Gauge(
            "ratchet_training_run_progress_ratio",
            "How far the present run of a method is; 0 while none runs.",
            ("method",),
            registry=registry,
        )
        self.stage_seconds = Counter(
            "ratchet_training_stage_seconds_total",
            "Time in the stages of jobs, by stage: between the steps that it tells of.",
            ("stage",),
            registry=registry,
        )
        self.stage_left = Gauge(
            "ratchet_training_stage_left_seconds",
            "About how long the present stage still takes, by its pace; 0 where none runs, or has no "
            "pace yet.",
            registry=registry,
        )
        self.attempt = Gauge(
            "ratchet_training_attempt",
            "Which attempt the present job makes, from 1; 0 while none runs.",
            registry=registry,
        )
        self.checks_failed = Counter(
            "ratchet_training_checks_failed_total",
            "Checks of the release gate that refused a job's candidate, by check.",
            ("check",),
            registry=registry,
        )
        self.candidate = Gauge(
            "ratchet_training_candidate_figure",
            "Figures of the candidate of the last job that made one: kl (to the parent, nats a token), "
            "kl_first (to the chain's first version), length_ratio (to the parent), win_rate, "
            "data_on_policy_share.",
            ("model", "figure"),
            registry=registry,
        )
        self.runs = Counter(
            "ratchet_training_runs_total",
            "Runs that ended, by method and outcome.",
            ("method", "outcome"),
            registry=registry,
        )
        self.waiting = Gauge(
            "ratchet_training_jobs_waiting",
            "Jobs that have not ended.",
            registry=registry,
        )
        self.lease = Gauge(
            "ratchet_training_lease_held",
            "1 while this replica is the one that does jobs.",
            registry=registry,
        )
        self.new_pairs = Gauge(
            "ratchet_training_new_pairs",
            "Trainable pairs that are in no version's snapshot yet.",
            ("model",),
            registry=registry,
        )
        self.missing = Gauge(
            "ratchet_training_missing_rows",
            "What the next training by itself still lacks, by kind: pairs, judge_pairs (set apart "
            "for the judge), heldout_pairs, category_pairs (of the plan's coverage), days (of its "
            "cadence).",
            ("model", "kind"),
            registry=registry,
        )
        self.week_pairs = Gauge(
            "ratchet_training_week_pairs",
            "Trainable pairs of people since Monday (UTC), by figure: collected, forecast (at the "
            "week's end at its pace; none on its first day), target (of the collection plan).",
            ("model", "figure"),
            registry=registry,
        )
        self.webhooks = Counter(
            "ratchet_training_webhooks_total",
            "Reminders for webhooks, by what became of them.",
            ("outcome",),
            registry=registry,
        )
        self.reward = Gauge(
            "ratchet_training_reward_model_ratio",
            "Measures of the newest published reward model: accuracy on pairs it never saw, "
            "predecessor_accuracy and accuracy_gain over it on pairs neither saw, "
            "calibration_error; fresh_accuracy on votes that came since, and "
            "fresh_accuracy_change_high, the upper 99 % bound of its change: below 0 it has fallen.",
            ("model", "figure"),
            registry=registry,
        )
        self.fresh_votes = Counter(
            "ratchet_training_fresh_votes_total",
            "Votes that came after the newest reward model and were to be scored by it, by outcome: "
            "scored, failed (they are tried again).",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("scored", "failed"):
            self.fresh_votes.labels(outcome)
        self.judges = Counter(
            "ratchet_training_judges_total",
            "Jobs whose candidates were judged, by judge: own, the reward model that the job "
            "trained, or predecessor, the published one where that agrees with more votes.",
            ("model", "judge"),
            registry=registry,
        )
        self.reward_drift = Gauge(
            "ratchet_training_reward_drift_ratio",
            "Population stability index of the pairs since the newest reward model against those "
            "before, by feature; above 0.2 they have moved.",
            ("model", "feature"),
            registry=registry,
        )
        self.reward_missing = Gauge(
            "ratchet_training_reward_missing_rows",
            "What a reward model still lacks to be tried again after one that was not published, by "
            "kind: judge_pairs, days (of the pause).",
            ("model", "kind"),
            registry=registry,
        )
        self.tracked = Counter(
            "ratchet_training_mlflow_runs_total",
            "Ended jobs that were to be logged to MLflow, by result.",
            ("result",),
            registry=registry,
        )
        for result in ("logged", "failed"):
            self.tracked.labels(result)
        for stage in get_args(Stage):
            self.stage_seconds.labels(stage)
        for method in TrainingMethod:
            self.progress.labels(method.value)
            for phase in FINAL:
                self.runs.labels(method.value, phase.value)

    def show_week(self, model: str, week: WeekProgress) -> None:
        """Export a week's progress; a week that has no forecast yet exports none."""
        self.week_pairs.labels(model, "collected").set(week.collected)
        self.week_pairs.labels(model, "target").set(week.target)
        if week.forecast is None:
            self.week_pairs.remove_by_labels({"model": model, "figure": "forecast"})
        else:
            self.week_pairs.labels(model, "forecast").set(week.forecast)

    def show_reward_figures(self, model: str, figures: Mapping[str, float | None]) -> None:
        """Export measures of the newest reward model; of those that are None, none."""
        for figure, value in figures.items():
            if value is None:
                self.reward.remove_by_labels({"model": model, "figure": figure})
            else:
                self.reward.labels(model, figure).set(value)

    def no_job(self, method: str) -> None:
        """Take back what is told of the present job: none runs any more."""
        self.progress.labels(method).set(0)
        self.stage_left.set(0)
        self.attempt.set(0)

    def note_outcome(self, model: str, outcome: JobOutcome) -> None:
        """Count the checks that refused a candidate, and export its figures in place of the last one's.

        A job that made no candidate leaves the last one's figures.
        """
        figures = outcome.metrics or {}
        self.note_judge(model, figures)
        for check in outcome.checks:
            if not check.passed:
                self.checks_failed.labels(check.name).inc()
        if not figures.keys() & set(CANDIDATE_FIGURES):
            return
        for figure in CANDIDATE_FIGURES:
            if figure in figures:
                self.candidate.labels(model, figure).set(figures[figure])
            else:
                self.candidate.remove_by_labels({"model": model, "figure": figure})

    def note_judge(self, model: str, figures: Mapping[str, float]) -> None:
        """Count a job by what judged its last candidate; one without a judge does not count."""
        if "judge_accuracy" in figures:
            own = not figures.get("judge_is_predecessor")
            self.judges.labels(model, "own" if own else "predecessor").inc()
