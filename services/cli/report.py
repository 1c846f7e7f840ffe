"""`ratchet report weekly`: a week's preferences, versions, quality and what to do next.

Counts of preferences, versions and training runs come from the log, so any past week can be made
again; shares of live traffic come from Prometheus, as far back as it keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask, listing
from services.cli.kafka import READ_TIMEOUT_S, with_log
from services.cli.output import print_json
from services.cli.prometheus import PrometheusClient
from services.cli.settings import load_settings
from services.cli.version_trajectory import read_trajectories
from services.cli.webhook import post_text, read_webhook
from services.cli.weekly import (
    SESSION_LENGTH,
    SIGNALS,
    TARGETS,
    Audience,
    Consistency,
    Correlation,
    Weekly,
    count_preferences,
    html,
    markdown,
    summary,
)

if TYPE_CHECKING:
    from shared.contracts.events.preferences import PreferencePair
    from shared.contracts.events.rollouts import Decision
    from shared.contracts.events.training import TrainingProgress, TrainingRequested
    from shared.contracts.events.versions import SettingsRecord, VersionRecord
    from shared.kafka.log import EventLog

app = typer.Typer(no_args_is_help=True, help="Reports over a stretch of time.")

WEEK = timedelta(days=7)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Preferences against target, versions, quality and next actions, as Markdown and HTML."""
    start, end = week_of(week, datetime.now(UTC))
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
        post_text(webhook, summary(found))


def week_of(day: str, now: datetime) -> tuple[datetime, datetime]:
    """Monday to Monday around a day, else the last seven days up to tomorrow's midnight, in UTC.

    Raises:
        CliError: the text is no day.

    """
    if not day:
        end = datetime.combine(now.astimezone(UTC).date(), datetime.min.time(), UTC)
        return end + timedelta(days=1) - WEEK, end + timedelta(days=1)
    try:
        found = date.fromisoformat(day)
    except ValueError:
        raise CliError(f"--week is {day!r}; write a day as 2026-11-25", Exit.usage) from None
    monday = found - timedelta(days=found.weekday())
    start = datetime.combine(monday, datetime.min.time(), UTC)
    return start, start + WEEK


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
        figures=figures,
        errors=errors,
        correlations=correlations,
        audiences=tuple(sorted(audiences, key=lambda one: (one.dimension, one.value))),
    )


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
    from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted
    from shared.contracts.events.rollouts import Decision
    from shared.contracts.events.training import TrainingProgress, TrainingRequested
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

    models = models_by_type(
        PreferencePair, PreferenceRetracted, TrainingRequested, TrainingProgress, Decision
    )
    pairs: list[PreferencePair] = []
    retracted: set[str] = set()
    jobs: list[TrainingRequested | TrainingProgress] = []
    decisions: list[Decision] = []
    registry = Registry()
    for record in await read_to_end(
        log,
        PREFERENCES,
        ROLLOUTS,
        TRAINING_JOBS,
        TRAINING_RUNS,
        VERSIONS,
        timeout_s=READ_TIMEOUT_S,
    ):
        try:
            if record.topic == VERSIONS:
                registry.apply(record.key, record.value)
                continue
            event = decode(record.headers, record.value, models)
        except (UnreadableRecord, ValueError):
            continue  # unpaired examples, and what nobody could read
        if isinstance(event, PreferencePair):
            if start <= event.created_at < end and model in ("", event.model):
                pairs.append(event)
        elif isinstance(event, PreferenceRetracted):
            if event.created_at < end:
                retracted.add(event.pair_id)
        elif isinstance(event, TrainingRequested | TrainingProgress):
            jobs.append(event)
        elif isinstance(event, Decision) and start <= event.at < end and model in ("", event.model):
            decisions.append(event)
    versions = [
        version_row(one.record, one.lifecycle.value)
        for one in registry.versions(model)
        if start <= one.record.created_at < end
    ]
    return Weekly(
        start=start.date(),
        end=end.date(),
        target=target,
        preferences=count_preferences(pairs, retracted, start),
        versions=tuple(versions),
        rollouts=tuple(rollout_rows(decisions)),
        trainings=tuple(training_rows(jobs, start, end, model)),
    )


def version_row(record: VersionRecord | SettingsRecord, state: str) -> dict[str, str]:
    """A version of the week as a row."""
    return {
        "version": record.version,
        "model": record.model,
        "parent": record.parent or "–",
        "state": state,
    }


def rollout_rows(decisions: Iterable[Decision]) -> list[dict[str, str]]:
    """Rollouts that the week's decisions are about, by their last word; holds decide nothing."""
    words: dict[str, list[Decision]] = {}
    for decision in decisions:
        if decision.rollout_id and decision.kind != "hold":
            words.setdefault(decision.rollout_id, []).append(decision)
    last = {name: max(all_, key=lambda one: (one.token, one.seq)) for name, all_ in words.items()}
    return [
        {
            "rollout": name,
            "model": one.model,
            "candidate": one.candidate,
            "phase": one.phase.value,
            "decisions": str(len(words[name])),
            "last reason": one.reason,
        }
        for name, one in sorted(last.items(), key=lambda pair: pair[1].at)
    ]


def training_rows(
    events: Iterable[TrainingRequested | TrainingProgress],
    start: datetime,
    end: datetime,
    model: str,
) -> list[dict[str, str]]:
    """Jobs asked for in the week, oldest first."""
    from shared.registry.training_jobs import jobs_of

    rows = [
        {
            "job": job["job_id"],
            "model": job["model"],
            "method": job["method"],
            "phase": job["phase"],
            "why": job.get("message") or "–",
            "at": job["requested_at"],
        }
        for job in jobs_of(events)
        if start <= datetime.fromisoformat(job["requested_at"]) < end
        and model in ("", job["model"])
    ]
    return sorted(rows, key=lambda row: row["at"])
