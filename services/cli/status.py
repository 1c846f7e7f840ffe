"""`ratchet status`: health of every service, routing, and pending work."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import typer

from services.cli.errors import CliError, Exit, reason_of
from services.cli.http import fetch
from services.cli.kafka import with_view
from services.cli.output import AsJson, percent, print_json, print_table
from services.cli.settings import CliSettings, load_settings

TIMEOUT_S = 3.0
READY = 200

PENDING = (
    ("router", "ratchet_router_spool_bytes", "interaction bytes on their way to Kafka"),
    ("router", "ratchet_router_events_lost_total", "interaction events lost"),
    ("feedback", "ratchet_ingestion_waiting_events", "feedback waiting for Kafka"),
    ("aggregator", "ratchet_feedback_pending", "feedback waiting for its interaction"),
    ("training", "ratchet_training_run_progress_ratio", "progress of the training run"),
    (
        "training",
        'ratchet_training_week_pairs{figure="target"}',
        "pairs that the week should bring",
    ),
    ("training", 'ratchet_training_week_pairs{figure="collected"}', "pairs since Monday (UTC)"),
    (
        "training",
        'ratchet_training_week_pairs{figure="forecast"}',
        "pairs at the week's end, at its pace so far",
    ),
    (
        "training",
        'ratchet_training_missing_rows{kind="pairs"}',
        "pairs missing for the next training",
    ),
    (
        "training",
        'ratchet_training_missing_rows{kind="judge_pairs"}',
        "pairs set apart for the judge missing for the next training",
    ),
    (
        "training",
        'ratchet_training_missing_rows{kind="heldout_pairs"}',
        "held-out pairs missing for the next training",
    ),
    (
        "training",
        'ratchet_training_missing_rows{kind="category_pairs"}',
        "pairs of the plan's categories missing for the next training",
    ),
    (
        "training",
        'ratchet_training_missing_rows{kind="days"}',
        "days until the plan's next training",
    ),
    (
        "training",
        'ratchet_training_reward_missing_rows{kind="days"}',
        "days until a reward model is tried again, as the last one was not published",
    ),
    (
        "training",
        'ratchet_training_reward_missing_rows{kind="judge_pairs"}',
        "judge's pairs missing until a reward model is tried again",
    ),
)
"""Metrics of pending work: the service, the metric, maybe with a label, what it counts."""


def status(*, as_json: AsJson = False) -> None:
    """Show services' health, routing, adapters, pending work; exit 1 unless all is well."""
    settings = load_settings()
    with ThreadPoolExecutor(max_workers=16) as pool:
        health = dict(zip(settings.urls, pool.map(_health(settings), settings.urls), strict=True))
        metrics = dict(zip(settings.urls, pool.map(_metrics(settings), settings.urls), strict=True))
        adapters = pool.submit(_adapters, settings).result()
    routing, routing_error = _routing(settings)
    pending = [
        {"service": service, "metric": metric, "about": about, "value": value}
        for service, metric, about in PENDING
        if (value := total(metrics[service], metric)) is not None
    ]
    if as_json:
        print_json(
            {
                "services": health,
                "routing": routing,
                "routing_error": routing_error,
                "adapters": adapters,
                "pending": pending,
            }
        )
    else:
        _print(health, routing, routing_error, adapters, pending)
    if routing_error or not all(service["ready"] for service in health.values()):
        raise typer.Exit(Exit.failed)


def total(text: str, metric: str) -> float | None:
    """The sum of a metric's samples in Prometheus' text format, None where it has none.

    The metric may name one label in braces, as in `metric{kind="pairs"}`.
    """
    name, _, label = metric.rstrip("}").partition("{")
    labels = rf"\{{[^\n]*{re.escape(label)}[^\n]*\}}"
    labels = labels if label else f"(?:{labels})?"
    pattern = re.compile(rf"^{name}{labels} ([-+.0-9eE]+)$", re.MULTILINE)
    values = [float(found) for found in pattern.findall(text)]
    return sum(values) if values else None


def _health(settings: CliSettings) -> Any:
    def look(service: str) -> dict[str, Any]:
        url = settings.url(service)
        try:
            status, text = fetch(settings, f"{url}/readyz", timeout_s=TIMEOUT_S)
        except OSError as error:
            return {"url": url, "ready": False, "checks": {"answer": reason_of(error)}}
        try:
            checks = json.loads(text).get("checks", {})
        except (ValueError, AttributeError):
            checks = {"answer": f"status {status}"}
        return {"url": url, "ready": status == READY, "checks": checks}

    return look


def _metrics(settings: CliSettings) -> Any:
    def look(service: str) -> str:
        try:
            status, text = fetch(settings, settings.metrics_url(service), timeout_s=TIMEOUT_S)
        except OSError:
            return ""
        return text if status == READY else ""

    return look


def _adapters(settings: CliSettings) -> list[dict[str, Any]]:
    try:
        _, text = fetch(settings, f"{settings.url('inference')}/v1/adapters", timeout_s=TIMEOUT_S)
        return list(json.loads(text).get("adapters", []))
    except (OSError, ValueError, AttributeError):
        return []


def _routing(settings: CliSettings) -> tuple[list[dict[str, Any]], str]:
    try:
        states = asyncio.run(with_view(settings, lambda view: view.all()))
    except CliError as error:
        return [], str(error)
    return [state.model_dump(mode="json") for state in states], ""


def _print(
    health: dict[str, dict[str, Any]],
    routing: list[dict[str, Any]],
    routing_error: str,
    adapters: list[dict[str, Any]],
    pending: list[dict[str, Any]],
) -> None:
    print_table(
        "Services",
        ("service", "ready", "where", "remarks"),
        [
            (
                name,
                found["ready"],
                found["url"],
                "; ".join(f"{k}: {v}" for k, v in found["checks"].items() if v != "ok"),
            )
            for name, found in health.items()
        ],
    )
    print_table(
        "Routing",
        ("model", "stable", "candidate", "weight", "phase", "rollout", "since"),
        [
            (
                state["model"],
                state["stable"],
                state["candidate"] or None,
                percent(state["weight"]),
                # The phase of the last decision says nothing of now where no rollout is under way.
                state["phase"] if state["rollout"] else None,
                state["rollout"] or None,
                state["at"],
            )
            for state in routing
        ],
    )
    if routing_error:
        typer.echo(routing_error, err=True)
    print_table(
        "Adapters",
        ("version", "state", "reason"),
        [(item.get("version"), item.get("state"), item.get("reason")) for item in adapters],
    )
    print_table(
        "Pending",
        ("what", "how much"),
        [(item["about"], item["value"]) for item in pending if item["value"]],
    )
