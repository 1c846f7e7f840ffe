"""`ratchet versions diff` and `rebuild`: two records side by side; a version made again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask, segment
from services.cli.identity import OnBehalfOf, on_record
from services.cli.kafka import with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings
from services.cli.train import run_job
from services.cli.train_jobs import say_progress

if TYPE_CHECKING:
    from shared.contracts.events.training import TrainingProgress

MAX_CHAIN = 1000
"""Most versions of a chain of parents."""
VersionName = Annotated[str, typer.Argument(help="A version's name, such as assistant-v1.1.")]


def diff_versions(first: VersionName, second: VersionName, *, as_json: AsJson = False) -> None:
    """Show what differs between two versions: recipe, data, packages, figures."""
    from shared.registry.record_differences import differences

    old, new = record_of(first), record_of(second)
    found = differences(old, new)
    if as_json:
        print_json({"first": first, "second": second, "differences": found})
        return
    print_table(
        f"{first} and {second}",
        ("field", first, second),
        [(one["field"], one["first"], one["second"]) for one in found],
    )


def rebuild_version(
    version: VersionName,
    *,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to follow.", min=1)] = 7200,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Make a version again from its record and compare the bytes; publishes nothing.

    Exit 1 where they differ; the reason is told.
    """
    from shared.contracts.events.training import TrainingRequested, method_fields

    record, settings = trained_record_of(version), load_settings()
    request = TrainingRequested.model_validate(
        {
            "job_id": f"rebuild-{uuid.uuid4().hex[:12]}",
            "model": record["model"],
            **method_fields(record.get("algorithm") or record["method"]),
            "rebuilds": version,
            **on_record(settings, on_behalf_of, reason),
            "requested_at": datetime.now(UTC),
        }
    )
    say = None if as_json else say_progress
    ended: TrainingProgress | None = with_log(
        settings, lambda log: run_job(log, request, say, timeout_s)
    )
    assert ended is not None
    equal = ended.phase.value == "succeeded"
    if as_json:
        print_json({"version": version, "equal": equal, "message": ended.message})
    if not equal:
        raise typer.Exit(Exit.failed)


def record_of(version: str) -> dict[str, Any]:
    """A version's record, by the rollout service.

    Raises:
        CliError: no answer, or no such version.

    """
    data = ask(load_settings(), "rollout", "GET", f"/v1/versions/{segment(version)}")
    return dict(data["record"])


def trained_record_of(version: str) -> dict[str, Any]:
    """A trained version's record, by the rollout service.

    Raises:
        CliError: no answer, no such version, or one of prompts and settings.

    """
    record = record_of(version)
    if "adapter_uri" not in record:
        served = record.get("adapter_of") or "the base"
        raise CliError(f"{version}: is prompts and settings; it serves {served}", Exit.usage)
    return record


def chain_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A version's record behind those of its parents, the first version in front.

    Raises:
        CliError: no answer, or one of them is unknown.

    """
    found = [record]
    while (parent := found[-1].get("parent")) and len(found) < MAX_CHAIN:
        found.append(trained_record_of(parent))
    return found[::-1]


def erased_rows_of(version: str) -> int:
    """How many rows of a version's training data were erased since.

    Raises:
        CliError: no answer, or no such version.

    """
    path = f"/v1/versions/{segment(version)}"
    return int(ask(load_settings(), "rollout", "GET", path).get("erased_rows", 0))
