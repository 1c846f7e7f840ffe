"""`ratchet versions rebase`: a version's chain made again on another base."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask, listing
from services.cli.identity import OnBehalfOf, on_record
from services.cli.kafka import with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings
from services.cli.train import run_job
from services.cli.train_jobs import FINAL
from services.cli.version_compare import VersionName, chain_of, trained_record_of

if TYPE_CHECKING:
    from shared.contracts.events.training import TrainingRequested
    from shared.kafka.log import EventLog

MISSING = "to be made"


def rebase_chain(
    version: VersionName,
    *,
    base: Annotated[str, typer.Option(help="The new base: a hub id or path.")],
    yes: Annotated[bool, typer.Option("--yes", help="Ask for the jobs; else show them.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Make a version and its parents again on another base, while the old one goes on serving.

    One job a version, the first version in front: its method, dataset, hyperparameters and seed,
    from its parent's successor on the new base, through the gate. What is made already is left out.
    """
    record, settings = trained_record_of(version), load_settings()
    chain = chain_of(record)
    if record["base"] == base:
        raise CliError(f"--base {base}: {version} is on it already", Exit.usage)
    known = ask(settings, "rollout", "GET", "/v1/versions", query={"model": record["model"]})
    there = successors(listing(known, "versions"), base)
    under_way = with_log(settings, lambda log: _under_way(log, base))
    states = [
        there.get(one["version"]) or under_way.get(one["version"]) or MISSING for one in chain
    ]
    wanted = [one for one, state in zip(chain, states, strict=True) if state == MISSING]
    requests = [_request(one, base, on_record(settings, on_behalf_of, reason)) for one in wanted]
    if yes:
        with_log(settings, lambda log: _ask_for(log, requests))
    if as_json:
        jobs = [request.model_dump(mode="json") for request in requests]
        print_json({"base": base, "asked": yes, "jobs": jobs})
        return
    rows = [_row(one, state) for one, state in zip(chain, states, strict=True)]
    print_table(
        f"{version} on {base}", ("version", "method", "rows", "seed", "dataset", base), rows
    )
    if not requests:
        typer.echo("nothing to ask for")
    elif yes:
        typer.echo(f"{len(requests)} jobs requested; follow them with ratchet train list")
    else:
        typer.echo(f"nothing was asked for; --yes asks for {len(requests)} jobs")


def successors(versions: Sequence[Mapping[str, Any]], base: str) -> dict[str, str]:
    """Each version that has been made again on a base -> the newest released one that came of it."""
    return {
        one["rebases"]: one["version"]
        for one in versions
        if one.get("rebases") and one.get("base") == base and one.get("released")
    }


async def _under_way(log: EventLog, base: str) -> dict[str, str]:
    """Each version that a job without an end makes again on a base -> the job and its phase."""
    from shared.registry.training_jobs import read_jobs

    return {
        job["rebases"]: f"{job['job_id']}: {job['phase']}"
        for job in await read_jobs(log)
        if job["rebases"] and job["base"] == base and job["phase"] not in FINAL
    }


async def _ask_for(log: EventLog, requests: Sequence[TrainingRequested]) -> None:
    for request in requests:
        await run_job(log, request, None, 0.0)


def _request(
    record: Mapping[str, Any], base: str, who_and_why: Mapping[str, str]
) -> TrainingRequested:
    from shared.contracts.events.training import TrainingRequested, method_fields

    return TrainingRequested.model_validate(
        {
            "job_id": f"rebase-{uuid.uuid4().hex[:12]}",
            "model": record["model"],
            **method_fields(record.get("algorithm") or record["method"]),
            "base": base,
            "rebases": record["version"],
            **who_and_why,
            "requested_at": datetime.now(UTC),
        }
    )


def _row(record: Mapping[str, Any], state: str) -> tuple[Any, ...]:
    dataset = record["dataset"]
    return (
        record["version"],
        record.get("algorithm") or record["method"],
        dataset["rows"],
        record["seed"],
        dataset["dataset_id"],
        state,
    )
