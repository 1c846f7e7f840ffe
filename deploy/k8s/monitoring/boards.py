"""The dashboards; those of single services are in `service_boards` and `training_board`.

Every query is run by a test against the Prometheus of a running stack. A figure that two replicas
export in turn (partitions, rollouts) is taken once, by `max by`.
"""

from __future__ import annotations

from deploy.k8s.monitoring.panels import (
    REQUESTS,
    WAITS,
    Panel,
    by_partition,
    panel,
    per_second,
    quantile,
)
from deploy.k8s.monitoring.service_boards import INFERENCE, KAFKA, ROUTER
from deploy.k8s.monitoring.training_board import TRAINING


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
            "sum by (topic, reason) (ratchet_dead_letters_total)"
            ' or label_replace(vector(0), "reason", "none", "", "")',
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
