"""`ratchet versions`: what the registry knows, through the rollout service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.http import ask, listing, segment
from services.cli.output import AsJson, print_fields, print_json, print_table
from services.cli.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="List versions and look at one.")


@app.command("list")
def list_versions(
    *,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    as_json: AsJson = False,
) -> None:
    """All versions in the order they were registered."""
    data = ask(load_settings(), "rollout", "GET", "/v1/versions", query={"model": model})
    if as_json:
        print_json(data)
        return
    print_table(
        "Versions",
        ("version", "state", "method", "parent", "gate", "created"),
        [_row(version) for version in listing(data, "versions")],
    )


@app.command()
def show(
    version: Annotated[str, typer.Argument(help="A version's name, such as assistant-v1.1.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Everything that is recorded of one version."""
    data = ask(load_settings(), "rollout", "GET", f"/v1/versions/{segment(version)}")
    if as_json:
        print_json(data)
        return
    record = dict(data.get("record", data))
    record.pop("fingerprint", None)
    print_fields(version, {"lifecycle": data.get("lifecycle"), **record})


def _row(version: dict[str, Any]) -> tuple[Any, ...]:
    record = version.get("record", version)
    gate = record.get("gate") or {}
    verdict = "passed" if gate.get("passed") else "no"
    if gate.get("overridden_by"):
        verdict = f"overridden by {gate['overridden_by']}"
    return (
        record.get("version"),
        version.get("lifecycle"),
        record.get("method"),
        record.get("parent"),
        verdict,
        record.get("created_at"),
    )
