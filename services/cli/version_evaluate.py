"""`ratchet versions evaluate`: settings on recorded prompts, beside stable's answers."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask, segment
from services.cli.identity import OnBehalfOf, Why, who
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings

POLL_S = 1.0
BEGIN_TIMEOUT_S = 60.0
"""The service reads the newest recorded requests first."""


def evaluate_version(
    version: Annotated[str, typer.Argument(help="A registered version of settings.")],
    reason: Why,
    *,
    prompts: Annotated[int, typer.Option(min=10, max=128, help="Recorded prompts to ask.")] = 64,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the result; 0: do not wait.")
    ] = 1_900.0,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Answer recorded prompts with a version of settings and with stable, and compare."""
    settings = load_settings()
    path = f"/v1/versions/{segment(version)}"
    before = _evaluation(ask(settings, "rollout", "GET", path))
    body = {"prompts": prompts, "on_behalf_of": on_behalf_of or who(), "reason": reason}
    begun = ask(
        settings,
        "rollout",
        "POST",
        f"{path}/evaluation",
        body=body,
        timeout_s=BEGIN_TIMEOUT_S,
    )
    if not timeout:
        print_json(begun)
        return
    deadline = time.monotonic() + timeout
    while True:
        shown = ask(settings, "rollout", "GET", path)
        found = _evaluation(shown)
        if found and found != before:
            break
        failed = (shown.get("evaluating") or {}).get("failed")
        if failed or time.monotonic() > deadline:
            why = failed or f"no result within {timeout:g} s; see `ratchet versions show {version}`"
            raise CliError(f"{version} was not evaluated: {why}", Exit.failed)
        time.sleep(POLL_S)
    if as_json:
        print_json(found)
    else:
        _print(version, found)
    if not found["gate"]["passed"]:
        raise typer.Exit(Exit.failed)


def _evaluation(shown: dict[str, Any]) -> dict[str, Any]:
    return shown.get("evaluation") or {}


def _print(version: str, evaluation: dict[str, Any]) -> None:
    verdict = "passed" if evaluation["gate"]["passed"] else "failed"
    print_table(
        f"{version} against {evaluation['against']} on {evaluation['prompts']} prompts: {verdict}",
        ("check", "passed", "value", "limit", "detail"),
        [
            (one["name"], one["passed"], one["value"], one["limit"], one["detail"])
            for one in evaluation["gate"]["checks"]
        ],
    )
