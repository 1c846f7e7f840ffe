"""`ratchet cases`: the failure memory, which every candidate is asked again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.identity import OnBehalfOf, Why, on_record
from services.cli.kafka import read_events, read_registry, with_log
from services.cli.output import AsJson, print_json, print_known, print_table
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.kafka.log import EventLog
    from shared.registry.cases import FailureCase

PUBLISH_TIMEOUT_S = 10.0
SHOWN = 60
"""Characters of a prompt that the list shows."""

app = typer.Typer(help="Look at failures of before, which the gate asks every candidate again.")


@app.command("list")
def list_cases(
    *,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    as_json: AsJson = False,
) -> None:
    """List corrections, answers of rolled-back versions and red-team hits, oldest first."""
    cases = [case for case in with_log(load_settings(), read_cases) if model in ("", case.model)]
    if as_json:
        print_json({"cases": [asdict(case) for case in cases]})
        return
    rows = [
        (case.case_id, case.model, case.kind, case.version, _prompt(case), case.retired or None)
        for case in cases
    ]
    print_table("Cases", ("case", "model", "kind", "version", "prompt", "retired"), rows)


@app.command()
def show(
    case_id: Annotated[str, typer.Argument(help="A case's id, as ratchet cases list has it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one case with its lineage: the feedback and the requests that it came from."""
    data: dict[str, Any] = asdict(_find(with_log(load_settings(), read_cases), case_id))
    data["messages"] = [
        {"role": turn["role"], "content": turn["content"]}
        for turn in (message.model_dump() for message in data["messages"])
    ]
    if as_json:
        print_json(data)
        return
    print_known(case_id, data)


@app.command()
def retire(
    case_id: Annotated[str, typer.Argument(help="A case's id, as ratchet cases list has it.")],
    *,
    reason: Why,
    on_behalf_of: OnBehalfOf = "",
) -> None:
    """Stop asking candidates a case, because what it wants is no longer right."""
    settings = load_settings()
    asked = on_record(settings, on_behalf_of, reason)
    with_log(settings, lambda log: _retire(log, case_id, asked))
    typer.echo(f"{case_id}: retired")


async def read_cases(log: EventLog) -> list[FailureCase]:
    """All cases, as the event log has them."""
    from shared.contracts.topics import CASES, PREFERENCES
    from shared.registry.cases import CASE_MODELS, FailureMemory, rolled_back

    memory = FailureMemory()
    for event in await read_events(log, (PREFERENCES, CASES), *CASE_MODELS.values()):
        memory.apply(event)
    return memory.cases(rolled_back(await read_registry(log)))


async def _retire(log: EventLog, case_id: str, asked: dict[str, str]) -> None:
    from datetime import UTC, datetime

    from pydantic import ValidationError

    from shared.contracts.events.cases import CaseRetired
    from shared.contracts.topics import CASES
    from shared.kafka.envelope import describe

    _find(await read_cases(log), case_id)
    try:
        event = CaseRetired.model_validate(asked | {"case_id": case_id, "at": datetime.now(UTC)})
    except ValidationError as error:
        raise CliError(describe(error), Exit.usage) from None
    await log.publish(
        CASES, key=case_id, event=event, event_id=f"{case_id}:retire", timeout_s=PUBLISH_TIMEOUT_S
    )


def _find(cases: list[FailureCase], case_id: str) -> FailureCase:
    found = next((case for case in cases if case.case_id == case_id), None)
    if found is None:
        raise CliError(f"{case_id}: no such case; ratchet cases list has them", Exit.failed)
    return found


def _prompt(case: FailureCase) -> str:
    text = " ".join(case.messages[-1].content.split()) if case.messages else ""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
