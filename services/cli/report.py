"""`ratchet report weekly`: a week's preferences, versions, quality and what to do next.

Counts of preferences, versions and training runs come from the log, so any past week can be made
again; shares of live traffic come from Prometheus, as far back as it keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask, listing
from services.cli.kafka import READ_TIMEOUT_S, with_log
from services.cli.output import AsJson, print_json
from services.cli.prometheus import PrometheusClient
from services.cli.settings import load_settings
from services.cli.version_trajectory import read_trajectories
from services.cli.webhook import post_message, read_webhook
from services.cli.weekly_page import chat_message, html, markdown
from shared.quality_targets import TARGETS
from shared.reports.weekly import (
    SESSION_LENGTH,
    SIGNALS,
    Audience,
    Consistency,
    Correlation,
    Incident,
    Weekly,
    week_of,
)

if TYPE_CHECKING:
    from shared.kafka.log import EventLog

app = typer.Typer(no_args_is_help=True, help="Report over a stretch of time.")


@app.command()
def weekly(
    *,
    week: Annotated[
        str, typer.Option(help="A day of the week (YYYY-MM-DD, UTC); empty: the last seven days.")
    ] = "",
    target: Annotated[int, typer.Option(min=1, help="Pairs that a week should bring.")] = 100,
    model: Annotated[str, typer.Option(help="Only this model's; empty: all.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for weekly.md and weekly.html; else printed.")
    ] = None,
    webhook_file: Annotated[
        Path | None,
        typer.Option(
            envvar="RATCHET_REPORT_WEBHOOK_FILE",
            help='File with an address that takes {"text": …}: gets the report in a few lines.',
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sum up a week: pairs against target, versions, quality, next actions."""
    try:
        start, end = week_of(week, datetime.now(UTC))
    except ValueError:
        raise CliError(f"--week is {week!r}; write a day as 2026-11-25", Exit.usage) from None
    webhook = read_webhook(webhook_file) if webhook_file is not None else None
    found = _collect(start, end, target, model)
    if as_json:
        print_json({**asdict(found), "actions": found.actions()})
    elif out is None:
        typer.echo(markdown(found))
    else:
        out.mkdir(parents=True, exist_ok=True)
        (out / "weekly.md").write_text(markdown(found))
        (out / "weekly.html").write_text(html(found))
        typer.echo(f"{out / 'weekly.md'}\n{out / 'weekly.html'}")
    if webhook is not None:
        post_message(webhook, chat_message(found, datetime.now(UTC)))


def _collect(start: datetime, end: datetime, target: int, model: str) -> Weekly:
    async def work(log: EventLog) -> Weekly:
        report = await _from_log(log, start, end, target, model)
        return replace(report, trajectories=await read_trajectories(log, model))

    report = with_gains(with_log(load_settings(), work))
    at = min(end, datetime.now(UTC)).timestamp()
    try:
        return _with_figures(report, PrometheusClient(), at)
    except CliError as error:
        return replace(report, missing=str(error).splitlines()[0].rstrip("."))


def with_gains(report: Weekly) -> Weekly:
    """With the gain of each model's versions since the reference, as the rollout service knows it."""
    rows: list[dict[str, str]] = []
    try:
        for model in report.trajectories:
            query = {"model": model}
            data = ask(load_settings(), "rollout", "GET", "/v1/versions/gain", query=query)
            rows += gain_rows(listing(data, "gains"))
    except CliError as error:
        return replace(report, gains_missing=str(error).splitlines()[0].rstrip("."))
    return replace(report, gains=tuple(rows))


def gain_rows(gains: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """What versions gained since the holdout's reference, with its anytime-valid interval."""
    return [
        {
            "version": one["version"],
            "reference": one["holdout_reference"],
            "measure": measure,
            "value": f"{found[value]:.3f}",
            "at least": f"{found['low']:.3f}",
            "at most": f"{found['high']:.3f}",
        }
        for one in gains
        for measure, key, value in (
            ("satisfaction gained", "since_reference", "difference"),
            ("votes won", "win_rate_since_reference", "rate"),
        )
        if (found := one.get(key))
    ]


def _with_figures(report: Weekly, client: PrometheusClient, at: float) -> Weekly:
    figures: dict[str, dict[str, float]] = {}
    for sample in client.query('ratchet:quality_ratio{window="1d"}', at=at):
        if sample.labels["figure"] in (*TARGETS, *SIGNALS, SESSION_LENGTH):
            version = figures.setdefault(sample.labels["version"], {})
            version[sample.labels["figure"]] = sample.value
    counted = "sum by (version) (increase(ratchet_router_request_duration_seconds_count[7d]))"
    failed = (
        "sum by (version) (increase(ratchet_router_requests_total"
        '{outcome=~"server_error|timeout|crash"}[7d]))'
    )
    errors = {
        sample.labels.get("version", ""): sample.value
        for sample in client.query(f"{failed} / ({counted} > 0)", at=at)
    }
    bounds = {
        (sample.labels["version"], sample.labels["bound"]): sample.value
        for sample in client.query('ratchet:implied_correlation_bound{window="1d"}', at=at)
    }
    correlations = {
        version: Correlation(sample.value, bounds[version, "lower"], bounds[version, "upper"])
        for sample in client.query('ratchet:implied_correlation{window="1d"}', at=at)
        if (version := sample.labels["version"]) and (version, "lower") in bounds
    }
    audiences = tuple(
        Audience(sample.labels["dimension"], sample.labels["value"], sample.value)
        for sample in client.query("ratchet:audience_representation", at=at)
    )
    return replace(
        report,
        consistency=_consistency(client, at),
        incidents=incidents(client, at),
        figures=figures,
        errors=errors,
        correlations=correlations,
        audiences=tuple(sorted(audiences, key=lambda one: (one.dimension, one.value))),
    )


def incidents(client: PrometheusClient, at: float) -> tuple[Incident, ...]:
    """Ratchet's alerts that fired in the seven days before, minute by minute, the longest first."""
    fired = 'ALERTS{alertname=~"Ratchet.*",alertstate="firing"}'
    minutes = f"max by (alertname, severity) (count_over_time({fired}[7d:1m]))"
    found = [
        Incident(one.labels["alertname"], one.labels.get("severity", ""), round(one.value))
        for one in client.query(minutes, at=at)
    ]
    return tuple(sorted(found, key=lambda one: (-one.minutes, one.alert)))


def _consistency(client: PrometheusClient, at: float) -> Consistency | None:
    alphas = {
        sample.labels["bound"]: sample.value
        for sample in client.query("max by (bound) (ratchet_label_consistency_alpha)", at=at)
        if not math.isnan(sample.value)
    }
    raw = client.query("max(ratchet_label_consistency_raw_ratio)", at=at)
    items = client.query("max(ratchet_label_consistency_items)", at=at)
    if not raw or not items or math.isnan(raw[0].value):
        return None
    return Consistency(
        raw=raw[0].value,
        items=round(items[0].value),
        alpha=alphas.get("value"),
        low=alphas.get("low"),
        high=alphas.get("high"),
    )


async def _from_log(
    log: EventLog, start: datetime, end: datetime, target: int, model: str
) -> Weekly:
    from shared.contracts.topics import (
        PREFERENCES,
        ROLLOUTS,
        TRAINING_JOBS,
        TRAINING_RUNS,
        VERSIONS,
    )
    from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
    from shared.kafka.log import read_to_end
    from shared.registry.versions import Registry
    from shared.reports.weekly_events import WeekEvent, WeekEvents

    models = models_by_type(*get_args(WeekEvent))
    week, registry = WeekEvents(start, end, lambda one: model in ("", one)), Registry()
    for record in await read_to_end(
        log,
        PREFERENCES,
        ROLLOUTS,
        TRAINING_JOBS,
        TRAINING_RUNS,
        VERSIONS,
        timeout_s=READ_TIMEOUT_S,
    ):
        if record.topic == VERSIONS:
            registry.apply(record.key, record.value)
            continue
        with suppress(
            UnreadableRecord, ValueError
        ):  # unpaired examples, and what nobody could read
            week.add(decode(record.headers, record.value, models))
    return week.report(registry.versions(model), target, datetime.now(UTC))
