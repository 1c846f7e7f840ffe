"""Metrics of the rollout service (design, section 10)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.rollout.state import RolloutState
from services.rollout.verdict import CriterionResult
from shared.contracts.events.base import WEIGHT_SCALE
from shared.contracts.events.rollouts import AnalysisOutcome, Phase

OUTCOMES = (*(outcome.value for outcome in AnalysisOutcome), "none")


class RolloutMetrics:
    """Series of a rollout live while it is unfinished and a grace time after."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.weight = Gauge(
            "ratchet_rollout_weight_ratio",
            "Share of users on an arm",
            ("model", "rollout", "arm"),
            registry=registry,
        )
        self.phase = Gauge(
            "ratchet_rollout_phase",
            "1 for the present phase",
            ("model", "rollout", "phase"),
            registry=registry,
        )
        self.needs_person = Gauge(
            "ratchet_rollout_needs_person",
            "1 while a rollout waits for a person to look",
            ("model", "rollout"),
            registry=registry,
        )
        self.log_evidence = Gauge(
            "ratchet_rollout_log_evidence",
            "Natural log of the evidence against the candidate, by criterion",
            ("model", "rollout", "criterion"),
            registry=registry,
        )
        self.log_evidence_limit = Gauge(
            "ratchet_rollout_log_evidence_limit",
            "Where that evidence decides",
            ("model", "rollout", "criterion"),
            registry=registry,
        )
        self.rolled_back = Gauge(
            "ratchet_rollout_rolled_back",
            "1 where the judge or a hard stop took the candidate back; a person's abort is none",
            ("model", "rollout"),
            registry=registry,
        )
        self.shadow_answers = Gauge(
            "ratchet_rollout_shadow_answers",
            "Results of a shadow step's requests by outcome; expired and unsuited say nothing of it",
            ("model", "rollout", "outcome"),
            registry=registry,
        )
        self.shadow_coverage = Gauge(
            "ratchet_rollout_shadow_coverage_ratio",
            "Share of a shadow step's results that were answers to compare",
            ("model", "rollout"),
            registry=registry,
        )
        self.shadow_difference = Gauge(
            "ratchet_rollout_shadow_difference",
            "Differences between shadow answers and the shown ones, by figure",
            ("model", "rollout", "figure"),
            registry=registry,
        )
        self._of_rollouts = (
            self.shadow_answers,
            self.shadow_coverage,
            self.shadow_difference,
            self.rolled_back,
            self.weight,
            self.phase,
            self.needs_person,
            self.log_evidence,
            self.log_evidence_limit,
        )
        self.decisions = Counter(
            "ratchet_rollout_decisions",
            "Decisions written, by the outcome of the look behind them",
            ("model", "outcome"),
            registry=registry,
        )
        self.evidence_refused = Counter(
            "ratchet_rollout_evidence_refused",
            "Slices of evidence that the disk refused; judged all the same",
            registry=registry,
        )
        self.states_refused = Counter(
            "ratchet_rollout_states_refused",
            "Values in Redis that nobody could read or had signed, replaced by the state of the log",
            registry=registry,
        )
        self.webhooks = Counter(
            "ratchet_rollout_webhooks",
            "Transitions for webhooks, by what became of them",
            ("outcome",),
            registry=registry,
        )
        self.leader = Gauge(
            "ratchet_rollout_leader", "1 where this replica decides", registry=registry
        )
        self._look_age = Gauge(
            "ratchet_rollout_look_age_seconds",
            "Seconds since the controller last went round",
            registry=registry,
        )

    def read_at_scrape(self, look_age_s: Callable[[], float]) -> None:
        """Where the age of the last round comes from."""
        self._look_age.set_function(look_age_s)

    def know(self, model: str) -> None:
        """Create a model's counters at 0, so that the first decision is an increase."""
        for known in OUTCOMES:
            self.decisions.labels(model, known)

    def decided(self, model: str, outcome: AnalysisOutcome | None) -> None:
        """Count a decision."""
        self.know(model)
        self.decisions.labels(model, outcome.value if outcome else "none").inc()

    def show(self, state: RolloutState, *, rolled_back: bool) -> None:
        """Where a rollout is."""
        model, rollout = state.model, state.rollout_id
        share = state.weight / WEIGHT_SCALE
        self.weight.labels(model, rollout, "candidate").set(share)
        self.weight.labels(model, rollout, "stable").set(1 - share)
        for phase in Phase:
            self.phase.labels(model, rollout, phase.value).set(phase is state.phase)
        self.rolled_back.labels(model, rollout).set(rolled_back)
        self.needs_person.labels(model, rollout).set(state.needs_person)
        if state.shadow is not None:
            for outcome, count in state.shadow.outcomes().items():
                self.shadow_answers.labels(model, rollout, outcome).set(count)
            self.shadow_coverage.labels(model, rollout).set(state.shadow.coverage)
            for figure, value in state.shadow.differences().items():
                self.shadow_difference.labels(model, rollout, figure).set(value)

    def found(self, state: RolloutState, results: tuple[CriterionResult, ...]) -> None:
        """Export the result of each criterion."""
        for result in results:
            if result.threshold > 0:
                labels = (state.model, state.rollout_id, result.criterion)
                self.log_evidence.labels(*labels).set(result.log_e)
                self.log_evidence_limit.labels(*labels).set(result.threshold)

    def forget(self, model: str, rollout: str) -> None:
        """Drop the series of an ended rollout."""
        for metric in self._of_rollouts:
            metric.remove_by_labels({"model": model, "rollout": rollout})

    def forget_all(self) -> None:
        """Drop the series of every rollout, where another replica shows them now."""
        for metric in self._of_rollouts:
            metric.clear()
