"""`ratchet dataset build`: the dataset that a training would take now, stored and not trained on."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit
from services.cli.identity import OnBehalfOf, on_record
from services.cli.kafka import with_log
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, print_fields, print_json
from services.cli.settings import load_settings
from services.cli.stored_dataset import show_dataset
from services.cli.train import run_job
from services.cli.train_jobs import say_progress

if TYPE_CHECKING:
    from shared.contracts.events.training import TrainingProgress


def build_dataset(
    *,
    method: Annotated[str, typer.Option(help="Whose rows: sft, dpo, kto, reward.")] = "dpo",
    model: Model = DEFAULT_MODEL,
    dataset: Annotated[str, typer.Option(help="JSONL to import; else the log's pairs.")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a dataset with a bad row.")
    ] = False,
    parent: Annotated[str, typer.Option(help="Version to go on from; else stable.")] = "",
    base: Annotated[str, typer.Option(help="Base model; else the parent's.")] = "",
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=1)] = 3600,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Store the dataset that a training would take now, and train nothing.

    A job of the training service; exit 1 where no dataset comes of it.
    """
    from pydantic import ValidationError

    from shared.contracts.events.training import TrainingRequested, method_fields
    from shared.kafka.envelope import describe

    settings = load_settings()
    try:
        request = TrainingRequested.model_validate(
            {
                "job_id": f"dataset-{uuid.uuid4().hex[:12]}",
                "model": model,
                **method_fields(method),
                "dataset_uri": dataset,
                "strict": strict,
                "parent": parent,
                "base": base,
                "builds_dataset": True,
                **on_record(settings, on_behalf_of, reason),
                "requested_at": datetime.now(UTC),
            }
        )
    except ValidationError as error:
        raise CliError(describe(error), Exit.usage) from None
    say = None if as_json else say_progress
    ended: TrainingProgress | None = with_log(
        settings, lambda log: run_job(log, request, say, timeout_s)
    )
    assert ended is not None
    if ended.dataset is None:
        raise CliError(f"{request.job_id}: {ended.message}", Exit.failed)
    if as_json:
        print_json(ended.dataset.model_dump())
        return
    print_fields("Built", ended.dataset.model_dump(include={"dataset_id", "uri", "sha256", "rows"}))
    try:
        show_dataset(ended.dataset.uri)
    except CliError as error:
        typer.echo(f"the card cannot be read from here: {error}", err=True)
