"""`ratchet train`: request a training job and follow it; list and show jobs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.identity import OnBehalfOf, on_record
from services.cli.kafka import read_registry, with_log
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, print_json
from services.cli.settings import load_settings
from services.cli.target_files import require_writable
from services.cli.train_jobs import (
    FINAL,
    cancel_job,
    list_jobs,
    progress_of,
    say_progress,
    show_job,
    show_logs,
    write_report,
)

if TYPE_CHECKING:
    from shared.contracts.events.training import TrainingProgress, TrainingRequested
    from shared.contracts.recipes import Recipe
    from shared.kafka.log import EventLog, Tail


app = typer.Typer(help="Ask for the next version of a model, and look at training jobs.")
app.command("list")(list_jobs)
app.command("show")(show_job)
app.command("logs")(show_logs)
app.command("cancel")(cancel_job)
app.command("report")(write_report)


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    *,
    method: Annotated[
        str, typer.Option(help="sft, dpo, online_dpo, kto, ppo, grpo, rloo or reward; else dpo.")
    ] = "",
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with method and hyperparameters; options win over it.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    dataset: Annotated[str, typer.Option(help="JSONL to train on; else the log's pairs.")] = "",
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Another tool's file, written to --dataset first; form detected."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a dataset with a bad row; else leave it out.")
    ] = False,
    parent: Annotated[str, typer.Option(help="Version to go on from; else stable.")] = "",
    base: Annotated[str, typer.Option(help="Base model; else the parent's.")] = "",
    version: Annotated[str, typer.Option(help="Name to give; else the next one.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A hyperparameter, key=value; repeatable.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all chance; else the recipe's, else 0.")
    ] = None,
    override_gate: Annotated[
        bool,
        typer.Option("--override-gate", help="Release whatever the gate says; needs --reason."),
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    on_behalf_of: OnBehalfOf = "",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Follow it, and write its report here.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to follow it.", min=1)
    ] = 7200,
    as_json: AsJson = False,
) -> None:
    """Ask for the next version of a model. With --wait, exit 1 where none comes of it."""
    if context.invoked_subcommand is not None:
        return
    from shared.registry.training_jobs import new_job_id

    settings = load_settings()
    asked = _recipe(
        recipe,
        method=method or None,
        base=base or None,
        parent=parent or None,
        dataset=dataset or None,
        seed=seed,
        hyperparameters=_hyperparameters(set_ or []),
    )
    request = _request(
        job_id=new_job_id(),
        recipe_method=asked.method,
        model=model,
        dataset_uri=asked.dataset,
        strict=strict,
        parent=asked.parent,
        base=asked.base,
        version=version,
        hyperparameters=asked.hyperparameters,
        seed=asked.seed,
        override_gate=override_gate,
        **on_record(settings, on_behalf_of, reason),
    )
    if report is not None:
        require_writable("--report", report)
    to = None if source is None else _converted(source, asked.dataset, asked.method)
    with_log(settings, lambda log: refuse_early(log, request))
    if source is not None and to is not None:
        _convert(source, to, strict=strict)
    say, followed_s = None if as_json else say_progress, timeout_s if wait or report else 0.0
    ended = with_log(settings, lambda log: run_job(log, request, say, followed_s))
    if as_json:
        print_json((ended or request).model_dump(mode="json"))
    elif ended is None:
        typer.echo(
            f"{request.job_id} requested; follow it with ratchet train show {request.job_id}"
        )
    if report is not None and ended is not None:
        if name := _reported(ended):
            write_report(name, to=report)
        else:
            typer.echo(f"{report}: not written, as nothing was evaluated", err=True)
    if ended is not None and ended.phase.value != "succeeded":
        raise typer.Exit(Exit.failed)


def _reported(ended: TrainingProgress) -> str:
    """The version or job whose report there is; empty where nothing was evaluated."""
    if ended.phase.value == "succeeded":
        return ended.version
    return ended.job_id if ended.report_uri else ""


def _converted(source: Path, dataset: str, method: str) -> Path:
    """The file that another tool's rows are written to.

    Raises:
        CliError: it is not named or cannot be written, there is no such source, or the method does
            not learn from pairs.

    """
    if not dataset:
        raise CliError(
            "--from: needs --dataset, the JSONL file to write, where the training service reads "
            "imports (RATCHET_TRAINING_IMPORT_ROOTS)",
            Exit.usage,
        )
    if method == "sft":
        raise CliError(
            "--from: its rows are pairs, and sft learns from demonstrations; give those as "
            "--dataset, or take another --method",
            Exit.usage,
        )
    if not source.is_file():
        raise CliError(f"--from {source}: is no file; name the other tool's file", Exit.usage)
    to = Path(dataset.removeprefix("file://"))
    require_writable("--dataset", to, room=source.stat().st_size)
    return to


def _convert(source: Path, to: Path, *, strict: bool) -> None:
    """Another tool's file as the job's dataset."""
    from services.cli.dataset_convert import AUTO, convert_file
    from services.cli.pair_formats.ratchet import RATCHET

    convert_file(source, to, AUTO, RATCHET, strict=strict)


async def refuse_early(log: EventLog, request: TrainingRequested) -> None:
    """Refuse a job that could not be done, before its rows are converted; see `refuse_impossible`.

    Raises:
        JobRefused: names the field, what is wrong with it and what to do.
        LogUnavailable: a topic's end was not reached in time.

    """
    from shared.registry.training_jobs import refuse_impossible

    await refuse_impossible(log, request, await read_registry(log))


async def run_job(
    log: EventLog, request: TrainingRequested, say: Any, timeout_s: float
) -> TrainingProgress | None:
    """Ask for a job and follow it to its end, telling `say`; None where `timeout_s` is 0.

    Raises:
        CliError: it did not end in time.
        LogUnavailable: the request was not acknowledged.

    """
    from shared.contracts.topics import TRAINING_RUNS
    from shared.registry.training_jobs import request_job

    await request_job(log, request)
    if not timeout_s:
        return None
    if say is not None:
        typer.echo(f"{request.job_id} requested")
    tail = log.tail(TRAINING_RUNS)
    try:
        async with asyncio.timeout(timeout_s):
            return await _follow(tail, request.job_id, say)
    except TimeoutError:
        raise CliError(
            f"{request.job_id} did not end within {timeout_s:g} s; it goes on, see ratchet train show",
            Exit.failed,
        ) from None
    finally:
        await tail.close()


async def _follow(tail: Tail, job_id: str, say: Any) -> TrainingProgress:
    async for record in tail:
        progress = progress_of(record, job_id)
        if progress is None:
            continue
        if say is not None:
            say(progress)
        if progress.phase.value in FINAL:
            return progress
    raise CliError("the log of training runs ended; try again", Exit.unreachable)


def _recipe(path: Path | None, **options: Any) -> Recipe:
    """What the recipe file says, with the options over it; all of it checked."""
    from shared.contracts.recipes import BadRecipe, merge_recipe

    own = options.pop("hyperparameters")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        text = None if path is None else path.read_text(encoding="utf-8")
        return merge_recipe(text, given, own)
    except BadRecipe as error:
        raise CliError(str(error), Exit.usage) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--recipe {path}: cannot be read: {error}", Exit.usage) from None


def _request(*, recipe_method: str, **fields: Any) -> TrainingRequested:
    from datetime import UTC, datetime

    from pydantic import ValidationError

    from shared.contracts.events.training import TrainingRequested, method_fields
    from shared.kafka.envelope import describe

    given = fields | method_fields(recipe_method)
    try:
        return TrainingRequested.model_validate({**given, "requested_at": datetime.now(UTC)})
    except ValidationError as error:
        raise CliError(describe(error), Exit.usage) from None


def _hyperparameters(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise CliError(f"--set {pair}: it is key=value, such as beta=0.1", Exit.usage)
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
