"""`ratchet annotations push` and `pull`: label items of the queue in Label Studio or Argilla."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from services.cli.annotation_forms import (
    LABELLING_CONFIG,
    SidedItem,
    ToolLabel,
    argilla_labels,
    argilla_record,
    label_studio_labels,
    label_studio_task,
)
from services.cli.errors import CliError, Exit
from services.cli.http import ask, listing, segment
from services.cli.label_studio import LabelStudioProject
from services.cli.output import AsJson, print_fields, print_json
from services.cli.pair_formats.pair import BadPair
from services.cli.settings import CliSettings, load_settings
from shared.contracts.events.annotations import LABELS, AnnotationKind

MAX_PUSHED = 500
SHOWN_PROBLEMS = 10


class LabellingTool(StrEnum):
    """A labelling tool."""

    label_studio = "label-studio"
    argilla = "argilla"


class ToolForm(NamedTuple):
    """How a tool writes an item and its labels."""

    item: Callable[[SidedItem], dict[str, Any]]
    labels: Callable[[Mapping[str, Any]], Iterator[ToolLabel]]


FORMS = {
    LabellingTool.label_studio: ToolForm(label_studio_task, label_studio_labels),
    LabellingTool.argilla: ToolForm(argilla_record, argilla_labels),
}

ToolName = Annotated[LabellingTool, typer.Argument(help="The labelling tool.")]
Url = Annotated[str, typer.Option(help="Label Studio's address; else --file.")]
Project = Annotated[int, typer.Option(min=0, help="Number of the project in Label Studio.")]


def push(
    tool: ToolName,
    *,
    url: Url = "",
    project: Project = 0,
    file: Annotated[
        Path | None, typer.Option(help="Write the tool's JSON here instead, to import by hand.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="preference or rating.")
    ] = AnnotationKind.preference.value,
    count: Annotated[int, typer.Option(min=1, max=MAX_PUSHED, help="Items at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Hand open items to a labelling tool, sides at random and no version named."""
    if kind not in LABELS:
        raise CliError(f"--kind {kind}: give one of {', '.join(LABELS)}", Exit.usage)
    settings = load_settings()
    server = _server(tool, url, project, file, settings)
    known: set[str] = set()
    if server is not None:
        known = {label for task in server.tasks() if (label := _item_of(task))}
    items = list(_open_items(settings, kind, known, count))
    tasks = [
        FORMS[tool].item(SidedItem(item, turned=secrets.choice((True, False)))) for item in items
    ]
    if server is not None and tasks:
        server.add(tasks)
    if file is not None:
        _write(file, tasks)
    if as_json:
        print_json({"pushed": [item["item_id"] for item in items], "known": len(known)})
        return
    where = f"project {project}" if server is not None else str(file)
    typer.echo(f"{len(items)} items to {where}; {len(known)} were there")
    if not items:
        typer.echo(
            f"No open item of kind {kind} is left; ratchet annotations add or sample makes some"
        )


def pull(
    tool: ToolName,
    *,
    url: Url = "",
    project: Project = 0,
    file: Annotated[
        Path | None, typer.Option(help="Read the tool's JSON export here instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take people's labels from a labelling tool; each is feedback like one of the page."""
    settings = load_settings()
    server = _server(tool, url, project, file, settings)
    tasks = server.tasks() if server is not None else _read(file or Path())
    found = Pulled()
    for number, task in enumerate(tasks, 1):
        try:
            labels = list(FORMS[tool].labels(task))
        except BadPair as error:
            found.refuse(f"task {number}: {error}")
            continue
        for label in labels:
            _store(settings, label, found)
    _show(found, as_json=as_json)


def labelling_config(
    kind: Annotated[
        str, typer.Argument(help="preference or rating.")
    ] = AnnotationKind.preference.value,
) -> None:
    """Print the labelling interface that a Label Studio project for this kind needs."""
    if kind not in LABELLING_CONFIG:
        raise CliError(f"{kind}: give one of {', '.join(LABELLING_CONFIG)}", Exit.usage)
    typer.echo(LABELLING_CONFIG[AnnotationKind(kind)], nl=False)


@dataclass(slots=True)
class Pulled:
    """What became of the labels."""

    stored: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list[str])
    """Of the first ones that were not taken."""

    def refuse(self, problem: str) -> None:
        """Count a label that was not taken, and keep why."""
        self.refused += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(problem)


def _store(settings: CliSettings, label: ToolLabel, found: Pulled) -> None:
    body = {
        "annotator": label.annotator,
        "label": label.label,
        "by": "person",
        "turned": label.turned,
    }
    path = f"/v1/annotations/{segment(label.item_id)}/labels"
    try:
        ask(settings, "feedback", "POST", path, body=body)
    except CliError as error:
        if error.status is not Exit.refused:
            raise
        found.refuse(f"item {label.item_id}, {label.annotator}: {error}")
        return
    found.stored += 1


def _open_items(
    settings: CliSettings, kind: str, known: set[str], count: int
) -> Iterator[dict[str, Any]]:
    query = {"state": "open", "limit": MAX_PUSHED}
    answer = ask(settings, "feedback", "GET", "/v1/annotations", query=query)
    wanted = [
        one["item_id"]
        for one in listing(answer, "items")
        if one["kind"] == kind and one["missing"] and one["item_id"] not in known
    ]
    for item_id in wanted[:count]:
        yield ask(settings, "feedback", "GET", f"/v1/annotations/{segment(item_id)}")


def _server(
    tool: LabellingTool, url: str, project: int, file: Path | None, settings: CliSettings
) -> LabelStudioProject | None:
    """The project that is named, or None for a file.

    Raises:
        CliError: neither or both are named, or the tool has no server that this command speaks to.

    """
    if bool(url) == (file is not None):
        raise CliError("give either --url and --project, or --file", Exit.usage)
    if not url:
        return None
    if tool is not LabellingTool.label_studio:
        raise CliError(f"{tool.value} is reached by its files; give --file", Exit.usage)
    if not project:
        raise CliError(
            "--project: give the number in the address of the project's page", Exit.usage
        )
    return LabelStudioProject(url, project, settings)


def _item_of(task: Any) -> str:
    data = task.get("data") if isinstance(task, dict) else None
    return str(data.get("item", "")) if isinstance(data, dict) else ""


def _write(file: Path, tasks: list[dict[str, Any]]) -> None:
    try:
        file.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    except OSError as error:
        raise CliError(f"{file}: cannot be written: {error}", Exit.usage) from None


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        tasks = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CliError(f"{file}: cannot be read: {error}", Exit.usage) from None
    if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
        raise CliError(f"{file}: must be a JSON list of tasks or records", Exit.usage)
    return tasks


def _show(found: Pulled, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    print_fields("Labels", {"stored or known": found.stored, "refused": found.refused})
    for problem in found.problems:
        typer.echo(problem)
