"""`ratchet top`: a live view of traffic by version, rollouts and pending work in the terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError
from services.cli.http import ask, listing
from services.cli.output import AsJson, console_of_output, percent, print_json, table_of
from services.cli.prometheus import PrometheusClient
from services.cli.settings import CliSettings, load_settings

if TYPE_CHECKING:
    from rich.console import Group

REQUESTS = "ratchet_router_requests_total"
ARMS = "sum by (model, version, arm)"
FAILED = '{outcome=~"server_error|timeout|crash"}'
TRAFFIC = {
    "requests a second": f"{ARMS} (rate({REQUESTS}[1m])) > 0",
    "failed": f"{ARMS} (rate({REQUESTS}{FAILED}[1m])) / ({ARMS} (rate({REQUESTS}[1m])) > 0)",
    "satisfaction (5 min)": 'ratchet:quality_ratio{window="5m",figure="satisfaction"}',
}
"""Columns by model, version and arm, or by version alone."""
PENDING = {
    "progress of the training run": "max(ratchet_training_run_progress_ratio)",
    "training jobs waiting": "max(ratchet_training_jobs_waiting)",
    "interaction bytes on their way to Kafka": "sum(ratchet_router_spool_bytes)",
    "feedback waiting for its interaction": "sum(max by (partition) (ratchet_feedback_pending))",
    "dead letters of the last hour": "sum(increase(ratchet_dead_letters_total[1h]))",
}
ROLLOUTS = 5
"""The newest that are shown."""


def top(
    *,
    every_s: Annotated[
        float, typer.Option("--every", min=1, max=60, help="Seconds between two pictures.")
    ] = 2,
    as_json: AsJson = False,
) -> None:
    """Watch traffic by version, rollouts and pending work until Ctrl-C; print once into a pipe."""
    from rich.live import Live

    settings, console = load_settings(), console_of_output()
    if as_json:
        print_json(look(settings))
    elif not console.is_terminal:
        console.print(drawn(look(settings)), crop=False)
    else:
        with Live(drawn(look(settings)), console=console, screen=True, auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(every_s)
                    live.update(drawn(look(settings)), refresh=True)
            except KeyboardInterrupt:
                return


def look(settings: CliSettings) -> dict[str, Any]:
    """All that is shown; what cannot be read is in `missing` with the reason."""
    seen: dict[str, Any] = {"traffic": [], "pending": {}, "rollouts": [], "missing": []}
    try:
        client = PrometheusClient()
        seen["traffic"] = _traffic(client)
        values = {about: client.query(query) for about, query in PENDING.items()}
        seen["pending"] = {about: found[0].value for about, found in values.items() if found}
    except CliError as error:
        seen["missing"].append(str(error))
    try:
        data = ask(settings, "rollout", "GET", "/v1/rollouts", query={"limit": str(ROLLOUTS)})
        seen["rollouts"] = listing(data, "rollouts")
    except CliError as error:
        seen["missing"].append(str(error))
    return seen


def drawn(seen: dict[str, Any]) -> Group:
    """One picture of it."""
    from rich.console import Group
    from rich.text import Text

    traffic = [
        (row["model"], row["version"], row["arm"], *(row[name] for name in TRAFFIC))
        for row in seen["traffic"]
    ]
    return Group(
        *(Text(line, style="bold red") for line in seen["missing"]),
        table_of("Traffic, last minute", ("model", "version", "arm", *TRAFFIC), traffic),
        table_of(
            "Rollouts",
            ("model", "candidate", "weight", "phase", "outcome", "reason"),
            [_rollout(one) for one in seen["rollouts"]],
        ),
        table_of(
            "Pending",
            ("what", "how much"),
            [(about, value) for about, value in seen["pending"].items() if value],
        ),
    )


def _traffic(client: PrometheusClient) -> list[dict[str, Any]]:
    rates, failed, scores = (client.query(query) for query in TRAFFIC.values())
    failures = {_place(one.labels): one.value for one in failed}
    satisfaction = {one.labels.get("version", ""): one.value for one in scores}
    rows: list[dict[str, Any]] = []
    for one in sorted(rates, key=lambda rate: _place(rate.labels)):
        model, version, arm = _place(one.labels)
        figures = (one.value, failures.get((model, version, arm), 0.0), satisfaction.get(version))
        rows.append(
            {"model": model, "version": version, "arm": arm}
            | dict(zip(TRAFFIC, figures, strict=True))
        )
    return rows


def _place(labels: Any) -> tuple[str, str, str]:
    return labels.get("model", ""), labels.get("version", ""), labels.get("arm", "")


def _rollout(one: dict[str, Any]) -> tuple[Any, ...]:
    weight = percent(one.get("weight", 0))
    return (
        *(one.get("model"), one.get("candidate"), weight),
        *(one.get("phase"), one.get("outcome"), one.get("result") or one.get("reason")),
    )
