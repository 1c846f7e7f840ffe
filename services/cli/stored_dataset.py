"""`ratchet dataset show` and `diff`: what a stored dataset is made of, and what two differ in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any, NamedTuple, cast

import typer

from services.cli.dataset_lineage import DatasetLineage, RowLineage, read_lineage
from services.cli.errors import CliError, Exit
from services.cli.kafka import with_log
from services.cli.output import AsJson, print_fields, print_json, print_known, print_table
from services.cli.settings import load_settings

MANIFEST = "manifest.json"
FILES = ("train.jsonl", "heldout.jsonl", "judge.jsonl")
"""Files whose rows have ids."""
MANIFEST_FIELDS = (
    *("model", "method", "labelled", "origin", "source", "erased_from", "refused", "retracted"),
    *("offsets", "rules"),
)
"""Fields of a manifest in the order of `ratchet dataset show`."""
SHOWN = 20
"""Ids that are printed of each difference; --json has all."""
Folder = Annotated[str, typer.Argument(help="A dataset's folder: a path, or a URI such as s3://….")]


class FileDifference(NamedTuple):
    """What the same file of two datasets does not share, by row id."""

    file: str
    removed: list[str]
    added: list[str]
    changed: list[str]
    """In both, with another text."""


def show_dataset(
    folder: Folder,
    *,
    lineage: Annotated[
        bool,
        typer.Option("--lineage", help="What each row was made of, and who was trained on it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a dataset's origin, filters, counts and card; with --lineage its feedback and versions."""
    manifest, files_at = _manifest(folder)
    found = _lineage(folder, manifest, files_at) if lineage else None
    if as_json:
        print_json(manifest | (_lineage_as_json(found) if found else {}))
        return
    card, files = manifest.pop("card"), manifest.pop("files")
    shown = {name: value for name, value in manifest.items() if value is not False}
    print_known("Dataset", shown, order=MANIFEST_FIELDS)
    columns = ("rows", "bytes", "sha256")
    print_table(
        "Files",
        ("file", *columns),
        [(name, *(one[c] for c in columns)) for name, one in files.items()],
    )
    print_table("Card", ("what", "counts"), list(card.items()))
    if found is not None:
        _print_lineage(found)


def diff_datasets(old: Folder, new: Folder, *, as_json: AsJson = False) -> None:
    """Show which rows only one of two datasets has, and what else differs."""
    (first, old_files), (second, new_files) = _manifest(old), _manifest(new)
    fields = [
        {"field": name, "old": first.get(name), "new": second.get(name)}
        for name in sorted({*first, *second} - {"files"})
        if first.get(name) != second.get(name)
    ]
    rows = [
        difference(name, dict(_rows(old_files, name)), dict(_rows(new_files, name)))
        for name in FILES
        if name in first["files"] and name in second["files"]
    ]
    if as_json:
        print_json({"fields": fields, "files": [one._asdict() for one in rows]})
        return
    print_table("Differences", ("field", "old", "new"), [list(one.values()) for one in fields])
    kinds = ("removed", "added", "changed")
    print_table(
        "Rows",
        ("file", *kinds),
        [(one.file, *(_some(getattr(one, k)) for k in kinds)) for one in rows],
    )


def difference(file: str, old: dict[str, int], new: dict[str, int]) -> FileDifference:
    """The difference of two files whose rows are given as {id: digest}."""
    return FileDifference(
        file,
        removed=sorted(old.keys() - new.keys()),
        added=sorted(new.keys() - old.keys()),
        changed=sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    )


def _manifest(folder: str) -> tuple[dict[str, Any], str]:
    """A dataset's manifest, and where its files are: an erasure's in a folder of its hash."""
    import fsspec

    root = folder.rstrip("/")
    uri = f"{root}/{MANIFEST}"
    try:
        with cast("Any", fsspec.open(uri, "rb")) as file:
            stored = file.read()
        found = json.loads(stored)
        erased = f"{root}/{sha256(stored).hexdigest()[:16]}"
        filesystem, path = cast("tuple[Any, str]", fsspec.url_to_fs(erased))
        files = erased if filesystem.exists(path) else root
        missing = {"card", "files", "model", "offsets"} - found.keys()
    except Exception as error:  # noqa: BLE001 s3fs hands botocore's errors on as they are
        raise CliError(f"{uri}: {getattr(error, 'strerror', None) or error}", Exit.failed) from None
    if missing:
        raise CliError(f"{uri}: is no dataset's manifest, {missing.pop()} is missing", Exit.failed)
    return dict(found), files


def _rows(folder: str, name: str) -> Iterator[tuple[str, int]]:
    """Id and hash of each row; the rows themselves are not kept."""
    import fsspec

    uri, number = f"{folder.rstrip('/')}/{name}", 0
    try:
        with cast("Any", fsspec.open(uri, "rb")) as file:
            for line in file:
                number += 1
                meta = json.loads(line)["meta"]
                yield meta.get("pair_id") or meta["row_id"], hash(line)
    except OSError as error:
        raise CliError(f"{uri}: {error.strerror or error}", Exit.failed) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CliError(f"{uri}, line {number}: is no row of a dataset", Exit.failed) from None


def _lineage(folder: str, manifest: dict[str, Any], files_at: str) -> DatasetLineage:
    name = manifest.get("erased_from") or folder.rstrip("/").rpartition("/")[-1]
    rows = {
        file: [row for row, _ in _rows(files_at, file)]
        for file in FILES
        if file in manifest["files"]
    }
    about = {"model": manifest["model"], "offsets": manifest["offsets"], "rows": rows}
    return with_log(load_settings(), lambda log: read_lineage(log, name, **about))


def _lineage_as_json(found: DatasetLineage) -> dict[str, Any]:
    return {"lineage": {**found._asdict(), "rows": [row._asdict() for row in found.rows]}}


def _print_lineage(found: DatasetLineage) -> None:
    print_fields(
        "Trained on it",
        {"versions": _some(list(found.versions)), "reward models": _some(list(found.rewards))},
    )
    print_table("Made of", RowLineage._fields, found.rows[:SHOWN])
    if (more := len(found.rows) - SHOWN) > 0:
        typer.echo(f"and {more} rows more; --json has all")


def _some(ids: list[str]) -> str:
    more = len(ids) - SHOWN
    return ", ".join(ids[:SHOWN]) + (f" and {more} more" if more > 0 else "") or "–"
