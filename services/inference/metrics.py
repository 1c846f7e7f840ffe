"""Metrics of the inference service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.inference.reconcile import AdapterState

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_SCORES = (-8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Edges of reward scores, which have no unit and lie around 0."""


class InferenceMetrics:
    """All series of this service, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.engine_up = Gauge(
            "ratchet_inference_engine_up",
            "1 while the engine answers its health check.",
            registry=registry,
        )
        self.engine_generation = Gauge(
            "ratchet_inference_engine_generation",
            "Counts the engine's starts; adapters are gone when it rises.",
            registry=registry,
        )
        self.engine_ends = Counter(
            "ratchet_inference_engine_ends_total",
            "Ends of an engine process, by what ended it.",
            ("cause",),
            registry=registry,
        )
        for cause in ("exit", "unhealthy", "start_timeout", "asked"):
            self.engine_ends.labels(cause)
        self.engine_start_s = Histogram(
            "ratchet_inference_engine_start_seconds",
            "From starting the engine to its first healthy answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.adapters = Gauge(
            "ratchet_inference_adapters",
            "Adapters on this replica by state.",
            ("state",),
            registry=registry,
        )
        for state in AdapterState:
            self.adapters.labels(state)
        self.load_s = Histogram(
            "ratchet_inference_adapter_load_seconds",
            "Fetching, checking and loading one adapter.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.verify_s = Histogram(
            "ratchet_inference_adapter_verify_seconds",
            "Taking and judging one adapter's fingerprint.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.refusals = Counter(
            "ratchet_inference_adapter_refusals_total",
            "Adapters refused, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in ("checksum", "engine", "mismatch", "too_close"):
            self.refusals.labels(reason)
        self.generations = Counter(
            "ratchet_inference_generations_total",
            "Results of the batch worker.",
            ("purpose", "outcome"),
            registry=registry,
        )
        self.generation_s = Histogram(
            "ratchet_inference_generation_seconds",
            "One generation of the batch worker at the engine.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_in_flight = Gauge(
            "ratchet_inference_batch_in_flight",
            "Generations of the batch worker under way.",
            registry=registry,
        )
        self.scored = Counter(
            "ratchet_inference_scored_answers_total",
            "Answers scored by the reward model.",
            registry=registry,
        )
        self.score_s = Histogram(
            "ratchet_inference_score_seconds",
            "One request for scores, its wait included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.score_drift = Gauge(
            "ratchet_inference_score_drift_ratio",
            "Population stability index of the newest scores of a model's reward model against those "
            "it was published with; above 0.2 they have moved.",
            ("model",),
            registry=registry,
        )
        self.moderated = Counter(
            "ratchet_inference_moderated_total",
            "Moderated generations, by whose answer was returned; fallback: nothing scored it.",
            ("chosen",),
            registry=registry,
        )
        self.moderated_score = Histogram(
            "ratchet_inference_moderated_score",
            "Scores of writer's and critic's answers by the reward model.",
            ("role",),
            buckets=_SCORES,
            registry=registry,
        )
        for chosen in ("writer", "critic", "fallback"):
            self.moderated.labels(chosen)
        for role in ("writer", "critic"):
            self.moderated_score.labels(role)
        self.batch_allowed = Gauge(
            "ratchet_inference_batch_allowed",
            "Generations the batch worker may run beside the present live traffic.",
            registry=registry,
        )
