"""Writes the Grafana dashboards: python -m deploy.k8s.monitoring.generate.

A dashboard is a list of panels, a panel a title, what it tells, a unit and its queries. Every query
is run by a test against the Prometheus of a running stack.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[1] / "helm" / "ratchet" / "files" / "dashboards"
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}


@dataclass(frozen=True)
class Panel:
    """One graph: queries with their legends."""

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]


LOOP = (
    Panel(
        "Requests by version",
        "Attempts a second, by version and arm.",
        "reqps",
        (
            (
                "sum by (version, arm) (rate(ratchet_router_requests_total[$__rate_interval]))",
                "{{version}} {{arm}}",
            ),
        ),
    ),
    Panel(
        "Error share by version",
        "Failed attempts of those that count; the alert is at 2 %.",
        "percentunit",
        (("ratchet:errors:ratio_rate5m", "{{version}} {{arm}}"),),
    ),
    Panel(
        "Request duration, 99th percentile",
        "What a client waits; streams: to the first token.",
        "s",
        (
            (
                (
                    "histogram_quantile(0.99, sum by (version, le)"
                    " (rate(ratchet_router_request_duration_seconds_bucket[$__rate_interval])))"
                ),
                "{{version}}",
            ),
        ),
    ),
    Panel(
        "Added by the router, 99th percentile",
        "Time in the router itself.",
        "s",
        (
            (
                (
                    "histogram_quantile(0.99, sum by (le)"
                    " (rate(ratchet_router_overhead_seconds_bucket[$__rate_interval])))"
                ),
                "overhead",
            ),
        ),
    ),
    Panel(
        "Feedback by type",
        "Counted feedback a second.",
        "ops",
        (
            (
                (
                    "sum by (type) (max by (partition, version, type)"
                    " (rate(ratchet_feedback_total[$__rate_interval])))"
                ),
                "{{type}}",
            ),
        ),
    ),
    Panel(
        "Quality, last five minutes",
        "Targets: feedback rate > 5 %, positive ratio > 70 %, correction rate < 10 %.",
        "percentunit",
        (
            (
                'ratchet:quality_ratio{window="5m",figure!="satisfaction"}',
                "{{version}} {{figure}}",
            ),
        ),
    ),
    Panel(
        "Satisfaction, 1 to 5",
        "Mean of the last five minutes; the target is 4.",
        "none",
        (('1 + 4 * ratchet:quality_ratio{window="5m",figure="satisfaction"}', "{{version}}"),),
    ),
    Panel(
        "Feedback waiting for its interaction",
        "Grows while a router cannot ship its events.",
        "short",
        (("sum(max by (partition) (ratchet_feedback_pending))", "pending"),),
    ),
    Panel(
        "Age of events when counted, 95th percentile",
        "From the event's time to its count.",
        "s",
        (
            (
                (
                    "histogram_quantile(0.95, sum by (topic, le)"
                    " (rate(ratchet_event_age_seconds_bucket[$__rate_interval])))"
                ),
                "{{topic}}",
            ),
        ),
    ),
    Panel(
        "Spool of the routers",
        "Interaction events that the brokers have not acknowledged.",
        "bytes",
        (("ratchet_router_spool_bytes", "{{instance}}"),),
    ),
    Panel(
        "Training",
        "Progress of the present run.",
        "percentunit",
        (("ratchet_training_run_progress_ratio", "{{method}}"),),
    ),
    Panel(
        "Adapters by state",
        "What the engine has loaded and verified.",
        "short",
        (("sum by (state) (ratchet_inference_adapters)", "{{state}}"),),
    ),
)

ROLLOUT = (
    Panel(
        "Weight",
        "Share of live users on each arm.",
        "percentunit",
        (("max by (model, rollout, arm) (ratchet_rollout_weight_ratio)", "{{rollout}} {{arm}}"),),
    ),
    Panel(
        "Phase",
        "1 for the present one.",
        "short",
        (
            (
                "max by (model, rollout, phase) (ratchet_rollout_phase) == 1",
                "{{rollout}} {{phase}}",
            ),
        ),
    ),
    Panel(
        "Requests by arm",
        "Attempts of the rollout's traffic.",
        "reqps",
        (
            (
                (
                    "sum by (rollout, arm)"
                    ' (rate(ratchet_router_requests_total{rollout!=""}[$__rate_interval]))'
                ),
                "{{rollout}} {{arm}}",
            ),
        ),
    ),
    Panel(
        "Error share by arm",
        "Failed attempts of those that count, this rollout.",
        "percentunit",
        (
            (
                (
                    "sum by (rollout, arm) (rate(ratchet_router_requests_total"
                    '{rollout!="",outcome=~"server_error|timeout|crash"}[5m]))'
                    " / (sum by (rollout, arm)"
                    ' (rate(ratchet_router_request_duration_seconds_count{rollout!=""}[5m])) > 0)'
                ),
                "{{rollout}} {{arm}}",
            ),
        ),
    ),
    Panel(
        "Slow share by arm",
        "Answers after more than two seconds; the limit is 1 %.",
        "percentunit",
        (
            (
                (
                    "1 - sum by (rollout, arm) (rate(ratchet_router_request_duration_seconds_bucket"
                    '{rollout!="",le="2.0"}[5m]))'
                    " / (sum by (rollout, arm)"
                    ' (rate(ratchet_router_request_duration_seconds_count{rollout!=""}[5m])) > 0)'
                ),
                "{{rollout}} {{arm}}",
            ),
        ),
    ),
    Panel(
        "Satisfaction by arm, 1 to 5",
        "First scored feedback of randomly assigned traffic, since the rollout began.",
        "none",
        (
            (
                (
                    "1 + 4 * sum by (rollout, arm) (max by (partition, version, arm, rollout, segment)"
                    ' (ratchet_satisfaction_sum_total{rollout!=""}))'
                    " / (sum by (rollout, arm) (max by (partition, version, arm, rollout, segment)"
                    ' (ratchet_satisfaction_count_total{rollout!=""})) > 0)'
                ),
                "{{rollout}} {{arm}}",
            ),
        ),
    ),
    Panel(
        "Evidence against the candidate",
        "Logarithm of each criterion's e-value; it fails where it crosses its limit.",
        "none",
        (
            ("ratchet_rollout_log_evidence", "{{rollout}} {{criterion}}"),
            ("ratchet_rollout_log_evidence_limit", "limit {{criterion}}"),
        ),
    ),
    Panel(
        "Decisions",
        "Looks of the judge by outcome, a minute.",
        "opm",
        (
            (
                (
                    "60 * sum by (model, outcome)"
                    " (rate(ratchet_rollout_decisions_total[$__rate_interval]))"
                ),
                "{{outcome}}",
            ),
        ),
    ),
    Panel(
        "Distinct users by arm",
        "Keys the routers assigned; their ratio is the weight.",
        "short",
        (
            (
                "sum by (rollout, arm) (ratchet_router_assigned_keys_total)",
                "{{rollout}} {{arm}}",
            ),
        ),
    ),
    Panel(
        "Waits for a person",
        "1 while a rollout cannot go on by itself; `ratchet rollout status` says why.",
        "short",
        (("max by (model, rollout) (ratchet_rollout_needs_person)", "{{rollout}}"),),
    ),
)

BOARDS = {"loop": ("Ratchet: Loop", LOOP), "rollout": ("Ratchet: Rollout", ROLLOUT)}


def dashboard(name: str) -> dict[str, Any]:
    """The Grafana model of a dashboard."""
    title, panels = BOARDS[name]
    return {
        "uid": f"ratchet-{name}",
        "title": title,
        "tags": ["ratchet"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    across = COLUMNS // WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": number % across * WIDTH,
            "y": number // across * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def text(name: str) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write all dashboards."""
    DASHBOARDS.mkdir(exist_ok=True)
    for name in BOARDS:
        (DASHBOARDS / f"{name}.json").write_text(text(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
