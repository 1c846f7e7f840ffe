"""The dashboards: panels with a title, what they tell, a unit, queries and maybe a target.

Every query is run by a test against the Prometheus of a running stack. A figure that two replicas
export in turn (partitions, rollouts) is taken once, by `max by`.
"""

from __future__ import annotations

from dataclasses import dataclass

RATE = "[$__rate_interval]"
REQUESTS = "ratchet_router_requests_total"
WAITS = "ratchet_router_request_duration_seconds"


@dataclass(frozen=True)
class Panel:
    """One graph: queries with their legends; `target` is drawn as a line."""

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    target: float | None = None


def panel(
    title: str, about: str, unit: str, *queries: tuple[str, str], target: float | None = None
) -> Panel:
    """A panel with its queries as further arguments."""
    return Panel(title, about, unit, queries, target)


def quantile(share: float, metric: str, *labels: str, selector: str = "") -> str:
    """A quantile of a histogram, by labels."""
    by = ", ".join((*labels, "le"))
    return f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket{selector}{RATE})))"


def per_second(metric: str, *labels: str, selector: str = "") -> str:
    """Rate of a counter, summed up by labels."""
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (rate({metric}{selector}{RATE}))"


def by_partition(metric: str, *labels: str) -> str:
    """Rate of a counter of the aggregator: a partition counts once, whoever owned it."""
    inner = ", ".join(("partition", *labels))
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (max by ({inner}) (rate({metric}{RATE})))"


def quality(title: str, figure: str, about: str, target: float) -> Panel:
    """A live quality figure by version against its target."""
    selector = f'{{window="5m",figure="{figure}"}}'
    return panel(
        title,
        f"{about} Last five minutes, by version.",
        "percentunit",
        (f"ratchet:quality_ratio{selector}", "{{version}}"),
        target=target,
    )


LOOP = (
    panel(
        "Requests by version",
        "Attempts a second, by version and arm.",
        "reqps",
        (per_second(REQUESTS, "version", "arm"), "{{version}} {{arm}}"),
    ),
    panel(
        "Error share by version",
        "Failed attempts of those that count; the objective is 1 %, the alert at 2 %.",
        "percentunit",
        ("ratchet:errors:ratio_rate5m", "{{version}} {{arm}}"),
        target=0.02,
    ),
    quality("Feedback rate", "feedback_rate", "Answers that got feedback; target above 5 %.", 0.05),
    quality(
        "Positive ratio", "positive_ratio", "Feedback that is positive; target above 70 %.", 0.7
    ),
    quality(
        "Correction rate",
        "correction_rate",
        "Feedback that corrects the answer; target below 10 %.",
        0.1,
    ),
    panel(
        "Satisfaction, 1 to 5",
        "Mean of the last five minutes; the target is 4.",
        "none",
        ('1 + 4 * ratchet:quality_ratio{window="5m",figure="satisfaction"}', "{{version}}"),
        target=4,
    ),
    panel(
        "Label consistency",
        "Agreement of the annotation queue's raters: equal labels (target above 80 %), and alpha.",
        "percentunit",
        ("ratchet:label_consistency", "{{figure}}"),
        target=0.8,
    ),
    panel(
        "Feedback by type",
        "Counted feedback a second.",
        "ops",
        (by_partition("ratchet_feedback_total", "version", "type"), "{{version}} {{type}}"),
    ),
    panel(
        "Weight of rollouts",
        "Share of live users on each arm.",
        "percentunit",
        ("max by (model, rollout, arm) (ratchet_rollout_weight_ratio)", "{{rollout}} {{arm}}"),
    ),
    panel(
        "Rows missing for the next training",
        "By kind; it begins by itself at 0.",
        "short",
        ("max by (model, kind) (ratchet_training_missing_rows)", "{{model}} {{kind}}"),
    ),
    panel(
        "Training",
        "Progress of the present run.",
        "percentunit",
        ("max by (method) (ratchet_training_run_progress_ratio)", "{{method}}"),
    ),
    panel(
        "Adapters by state",
        "What the engines have loaded and verified.",
        "short",
        ("sum by (state) (ratchet_inference_adapters)", "{{state}}"),
    ),
    panel(
        "Dead letters",
        "Records that could not be read, since each service's start.",
        "short",
        (
            "sum by (topic, reason) (ratchet_dead_letters_total) or vector(0)",
            "{{topic}} {{reason}}",
        ),
    ),
)

ROLLOUT = (
    panel(
        "Weight",
        "Share of live users on each arm.",
        "percentunit",
        ("max by (model, rollout, arm) (ratchet_rollout_weight_ratio)", "{{rollout}} {{arm}}"),
    ),
    panel(
        "Phase",
        "1 for the present one.",
        "short",
        ("max by (model, rollout, phase) (ratchet_rollout_phase) == 1", "{{rollout}} {{phase}}"),
    ),
    panel(
        "Requests by arm",
        "Attempts of the rollout's traffic.",
        "reqps",
        (per_second(REQUESTS, "rollout", "arm", selector='{rollout!=""}'), "{{rollout}} {{arm}}"),
    ),
    panel(
        "Error share by arm",
        "Failed attempts of those that count, this rollout.",
        "percentunit",
        (
            f"sum by (rollout, arm) (rate({REQUESTS}"
            '{rollout!="",outcome=~"server_error|timeout|crash"}[5m]))'
            f' / (sum by (rollout, arm) (rate({WAITS}_count{{rollout!=""}}[5m])) > 0)',
            "{{rollout}} {{arm}}",
        ),
    ),
    panel(
        "Slow share by arm",
        "Answers later than their latency limit; at most 1 %.",
        "percentunit",
        (
            'sum by (rollout, arm) (rate(ratchet_router_slow_requests_total{rollout!=""}[5m]))'
            f' / (sum by (rollout, arm) (rate({WAITS}_count{{rollout!=""}}[5m])) > 0)',
            "{{rollout}} {{arm}}",
        ),
        target=0.01,
    ),
    panel(
        "Satisfaction by arm, 1 to 5",
        "First scored feedback of randomly assigned traffic, since the rollout began.",
        "none",
        (
            "1 + 4 * sum by (rollout, arm) (max by (partition, version, arm, rollout, segment)"
            ' (ratchet_satisfaction_sum_total{rollout!=""}))'
            " / (sum by (rollout, arm) (max by (partition, version, arm, rollout, segment)"
            ' (ratchet_satisfaction_count_total{rollout!=""})) > 0)',
            "{{rollout}} {{arm}}",
        ),
    ),
    panel(
        "Evidence against the candidate",
        "Logarithm of each criterion's e-value; it fails where it crosses its limit.",
        "none",
        ("ratchet_rollout_log_evidence", "{{rollout}} {{criterion}}"),
        ("ratchet_rollout_log_evidence_limit", "limit {{criterion}}"),
    ),
    panel(
        "Decisions",
        "Looks of the judge by outcome, a minute.",
        "opm",
        (
            f"60 * {per_second('ratchet_rollout_decisions_total', 'model', 'outcome')}",
            "{{outcome}}",
        ),
    ),
    panel(
        "Distinct users by arm",
        "Keys the routers assigned; their ratio is the weight.",
        "short",
        ("sum by (rollout, arm) (ratchet_router_assigned_keys_total)", "{{rollout}} {{arm}}"),
    ),
    panel(
        "Waits for a person",
        "1 while a rollout cannot go on by itself; `ratchet rollout status` says why.",
        "short",
        ("max by (model, rollout) (ratchet_rollout_needs_person)", "{{rollout}}"),
    ),
    panel(
        "Controller",
        "1 where a replica decides, and how long ago it last went round.",
        "short",
        ("ratchet_rollout_leader", "leads {{instance}}"),
        ("ratchet_rollout_look_age_seconds", "seconds since {{instance}}"),
    ),
)

ROUTER = (
    panel(
        "Requests by outcome",
        "Attempts a second.",
        "reqps",
        (per_second(REQUESTS, "outcome"), "{{outcome}}"),
    ),
    panel(
        "Request duration, 50th and 99th percentile",
        "What a client waits; streams: to the first token. Without limits of its own a model has 2 s for 99 %.",
        "s",
        (quantile(0.5, WAITS, "version"), "50 % {{version}}"),
        (quantile(0.99, WAITS, "version"), "99 % {{version}}"),
        target=2,
    ),
    panel(
        "Objectives, last hour",
        "Share of requests that failed or came late; the objective of both is 1 %.",
        "percentunit",
        ("ratchet:slo:bad_ratio_rate1h", "{{model}} {{sli}}"),
        target=0.01,
    ),
    panel(
        "Added by the router, 99th percentile",
        "Time in the router itself.",
        "s",
        (quantile(0.99, "ratchet_router_overhead_seconds"), "overhead"),
    ),
    panel(
        "Time to first token, 95th percentile",
        "Streams only.",
        "s",
        (quantile(0.95, "ratchet_router_time_to_first_token_seconds", "version"), "{{version}}"),
    ),
    panel(
        "Largest gap between tokens, 95th percentile",
        "Streams only.",
        "s",
        (quantile(0.95, "ratchet_router_token_gap_seconds", "version"), "{{version}}"),
    ),
    panel(
        "Spool",
        "Interaction events that the brokers have not acknowledged.",
        "bytes",
        ("ratchet_router_spool_bytes", "{{instance}}"),
    ),
    panel(
        "Events lost",
        "Interaction events that neither spool nor memory took.",
        "short",
        ("ratchet_router_events_lost_total", "{{instance}}"),
    ),
    panel(
        "Events recovered",
        "Of a process that was killed: from its spool or, without texts, its journal.",
        "short",
        ("ratchet_router_events_recovered_total", "{{instance}} {{folder}}"),
    ),
    panel(
        "Age of the routing state",
        "While a rollout has users; after a minute they go to stable.",
        "s",
        ("ratchet_router_state_age_seconds", "{{instance}}"),
        target=60,
    ),
    panel(
        "Behaviour of answers",
        "Complete answers a second by what they did; an answer may be of several kinds.",
        "ops",
        (
            per_second("ratchet_router_answers_total", "version", "behaviour"),
            "{{version}} {{behaviour}}",
        ),
    ),
)

INFERENCE = (
    panel(
        "Engines",
        "1 while the engine answers its health check.",
        "short",
        ("ratchet_inference_engine_up", "{{instance}}"),
    ),
    panel(
        "Ends of engines",
        "By what ended them, since the agent's start.",
        "short",
        (
            "sum by (instance, cause) (ratchet_inference_engine_ends_total)",
            "{{instance}} {{cause}}",
        ),
    ),
    panel(
        "Requests in the engine",
        "vLLM's own: running and waiting.",
        "short",
        ("sum by (instance) (vllm:num_requests_running)", "running {{instance}}"),
        ("sum by (instance) (vllm:num_requests_waiting)", "waiting {{instance}}"),
    ),
    panel(
        "Tokens a second",
        "vLLM's own: read and written.",
        "short",
        (per_second("vllm:prompt_tokens_total"), "read"),
        (per_second("vllm:generation_tokens_total"), "written"),
    ),
    panel(
        "Adapters by state",
        "On each replica.",
        "short",
        ("sum by (instance, state) (ratchet_inference_adapters)", "{{instance}} {{state}}"),
    ),
    panel(
        "Adapters refused",
        "By reason, since the agent's start.",
        "short",
        ("sum by (reason) (ratchet_inference_adapter_refusals_total)", "{{reason}}"),
    ),
    panel(
        "Loading an adapter, mean",
        "Fetching, checking and loading.",
        "s",
        (
            "sum(ratchet_inference_adapter_load_seconds_sum)"
            " / (sum(ratchet_inference_adapter_load_seconds_count) > 0)",
            "load",
        ),
    ),
    panel(
        "Batch worker",
        "Generations under way, and how many the live traffic leaves room for.",
        "short",
        ("ratchet_inference_batch_in_flight", "under way {{instance}}"),
        ("ratchet_inference_batch_allowed", "allowed {{instance}}"),
    ),
    panel(
        "Scores of moderated generation, median",
        "By the reward model: the writer's answer, and what the critic made of it.",
        "short",
        (quantile(0.5, "ratchet_inference_moderated_score", "role"), "{{role}}"),
    ),
    panel(
        "Whose answer moderated generation returned",
        "A second; fallback: nothing scored it.",
        "ops",
        (per_second("ratchet_inference_moderated_total", "chosen"), "{{chosen}}"),
    ),
)

KAFKA = (
    panel(
        "Events read by the aggregator",
        "A second, by topic.",
        "ops",
        (per_second("ratchet_aggregator_events_total", "topic"), "{{topic}}"),
    ),
    panel(
        "Age of events when counted, 95th percentile",
        "From the event's time to its count; feedback may be given late.",
        "s",
        (quantile(0.95, "ratchet_event_age_seconds", "topic"), "{{topic}}"),
    ),
    panel(
        "Partitions owned",
        "By worker; 0 while it recovers.",
        "short",
        ("ratchet_aggregator_partitions", "{{instance}}"),
    ),
    panel(
        "Rows held by the aggregator",
        "By worker, on disk; the room left on its volume beside it.",
        "bytes",
        ("ratchet_aggregator_state_bytes", "rows {{instance}}"),
        ("ratchet_aggregator_volume_free_bytes", "free {{instance}}"),
        ("sum(max by (partition) (ratchet_aggregator_row_bytes))", "traces, uncompressed"),
    ),
    panel(
        "Feedback waiting for its interaction",
        "Grows while a router cannot ship its events.",
        "short",
        ("sum(max by (partition) (ratchet_feedback_pending))", "pending"),
    ),
    panel(
        "What became of feedback",
        "A second, by outcome.",
        "ops",
        (by_partition("ratchet_feedback_outcomes_total", "outcome"), "{{outcome}}"),
    ),
    panel(
        "Writing a batch, 95th percentile",
        "Outputs, rows and checkpoints until the brokers confirmed them.",
        "s",
        (quantile(0.95, "ratchet_aggregator_batch_write_seconds"), "batch"),
    ),
    panel(
        "Feedback accepted",
        "Acknowledged by the brokers, a second, by way in.",
        "ops",
        (per_second("ratchet_ingestion_accepted_total", "way"), "{{way}}"),
    ),
    panel(
        "Feedback refused",
        "A second, by reason.",
        "ops",
        (per_second("ratchet_ingestion_rejected_total", "reason"), "{{reason}}"),
    ),
    panel(
        "Publishing feedback, 99th percentile",
        "From a checked event to the brokers' acknowledgement.",
        "s",
        (quantile(0.99, "ratchet_ingestion_publish_duration_seconds", "outcome"), "{{outcome}}"),
    ),
)

TRAINING = (
    panel(
        "Progress",
        "Of the present run, by method.",
        "percentunit",
        ("max by (method) (ratchet_training_run_progress_ratio)", "{{method}}"),
    ),
    panel(
        "Jobs waiting",
        "Jobs that have not ended.",
        "short",
        ("max(ratchet_training_jobs_waiting)", "jobs"),
    ),
    panel(
        "Runs ended",
        "By method and outcome, since the service's start.",
        "short",
        ("sum by (method, outcome) (ratchet_training_runs_total)", "{{method}} {{outcome}}"),
    ),
    panel(
        "Rows missing for the next training",
        "By kind; it begins by itself at 0.",
        "short",
        ("max by (model, kind) (ratchet_training_missing_rows)", "{{model}} {{kind}}"),
    ),
)

PEOPLE = (
    panel(
        "Votes by choice",
        "Blind comparisons, a second.",
        "ops",
        (per_second("ratchet_comparison_votes_total", "choice"), "{{choice}}"),
    ),
    panel(
        "Two answers side by side, 95th percentile",
        "From the request to both answers.",
        "s",
        (quantile(0.95, "ratchet_comparison_duration_seconds"), "comparison"),
    ),
    panel(
        "Feedback by type",
        "Acknowledged by the brokers, a second.",
        "ops",
        (per_second("ratchet_ingestion_accepted_total", "type"), "{{type}}"),
    ),
    panel(
        "Feedback without a user",
        "It counts, but neither judges nor teaches; a second, by way in.",
        "ops",
        (per_second("ratchet_ingestion_anonymous_total", "way"), "{{way}}"),
    ),
)

BOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "loop": ("Ratchet: Loop", LOOP),
    "rollout": ("Ratchet: Rollout", ROLLOUT),
    "router": ("Ratchet: Router", ROUTER),
    "inference": ("Ratchet: Inference", INFERENCE),
    "kafka": ("Ratchet: Kafka and stream", KAFKA),
    "training": ("Ratchet: Training", TRAINING),
    "people": ("Ratchet: People", PEOPLE),
}
