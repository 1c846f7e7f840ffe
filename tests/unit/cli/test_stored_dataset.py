"""`ratchet dataset show` and `diff` on datasets as training stores them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from services.cli import dataset_build, stored_dataset
from services.cli.__main__ import app
from services.cli.dataset_lineage import read_lineage
from services.cli.errors import CliError
from services.training.dataset_manifest import FilePlace
from services.training.dataset_store import DatasetStore
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.events.versions import DatasetRef, record_key
from shared.contracts.topics import PREFERENCES, VERSIONS
from shared.testing.log import MemoryLog
from tests.unit.training.builders import MODEL, pair_event, record

RUN = CliRunner()


@pytest.fixture
async def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A dataset, and the same one after its first row was erased."""
    log = MemoryLog()
    for number in range(30):
        event = pair_event(number)
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    rules = DatasetRules(prompts=5, judge_share=0.0)
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=rules)
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        DatasetStore(str(folder)).write(dataset)
    DatasetStore(str(after)).replace(dataset.erase({FilePlace("train.jsonl", 1)}))
    name = dataset.manifest.dataset_id
    return before / name, after / name


async def test_the_card_and_the_files_are_shown(folders: tuple[Path, Path]) -> None:
    done = RUN.invoke(app, ["dataset", "show", str(folders[1])])
    assert done.exit_code == 0, done.output
    for part in ("Card", "source", "train.jsonl", "erased_from"):
        assert part in done.output
    assert "source_sha256" not in done.output, "an import's alone"
    assert done.output.index("origin") < done.output.index("rules")
    done = RUN.invoke(app, ["dataset", "show", f"file://{folders[0]}", "--json"])
    assert json.loads(done.output)["offsets"]


async def test_the_rows_that_two_do_not_share_are_named(folders: tuple[Path, Path]) -> None:
    before, after = folders
    lines = (before / "train.jsonl").read_bytes().splitlines()
    first = json.loads(lines[0])["meta"]["pair_id"]
    edited = [line.replace(b"a good answer", b"a better one", 1) for line in lines[1:2]]
    (train,) = after.glob("*/train.jsonl")
    train.write_bytes(b"\n".join([*edited, *lines[2:]]) + b"\n")
    done = RUN.invoke(app, ["dataset", "diff", str(before), str(after), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    (rows,) = [one for one in found["files"] if one["file"] == "train.jsonl"]
    assert rows["removed"] == [first]
    assert rows["added"] == []
    assert rows["changed"] == [json.loads(lines[1])["meta"]["pair_id"]]
    assert "erased_from" in {one["field"] for one in found["fields"]}
    shown = RUN.invoke(app, ["dataset", "diff", str(after), str(before)])
    assert first in shown.output


def test_an_error_of_the_storage_s_own_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """As botocore's, which is no OSError."""

    def refuse(*_: Any) -> Any:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(fsspec, "open", refuse)
    done = RUN.invoke(app, ["dataset", "show", "s3://bucket/assistant-dpo-1"])
    assert isinstance(done.exception, CliError)
    assert "assistant-dpo-1/manifest.json: Unable to locate credentials" in str(done.exception)


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    done = RUN.invoke(app, ["dataset", "show", str(tmp_path)])
    assert isinstance(done.exception, CliError)
    assert "manifest.json" in str(done.exception)


@pytest.mark.parametrize("row", ["{", "[]", "{}", '{"meta": null}', '{"meta": {}}'])
async def test_a_row_that_is_none_is_named_by_its_line(
    folders: tuple[Path, Path], row: str
) -> None:
    before, after = folders
    (train,) = after.glob("*/train.jsonl")
    good, *_ = train.read_text().splitlines()
    train.write_text(f"{good}\n{row}\n")
    done = RUN.invoke(app, ["dataset", "diff", str(before), str(after)])
    assert isinstance(done.exception, CliError)
    assert "train.jsonl, line 2: is no row" in str(done.exception)
    train.unlink()
    done = RUN.invoke(app, ["dataset", "diff", str(before), str(after)])
    assert isinstance(done.exception, CliError)


async def test_the_lineage_names_feedback_interactions_and_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, store = MemoryLog(partitions={VERSIONS: 1}), DatasetStore(str(tmp_path))
    for number in range(30):
        event = pair_event(number, traces=(f"t{number}",))
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    rules = DatasetRules(prompts=5, judge_share=0.0)
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=rules)
    store.write(dataset)
    later = pair_event(0, causes=("later:1",))
    await log.publish(PREFERENCES, key=later.pair_id, event=later, event_id="later")
    for version, reference in (
        ("assistant-v1.1", dataset.reference(store.root)),
        ("assistant-v1.2", DatasetRef(dataset_id="other", uri="o", sha256="0" * 64, rows=1)),
    ):
        made = record(version, dataset=reference)
        await log.publish(VERSIONS, key=record_key(version), event=made, event_id=version)
    monkeypatch.setattr(stored_dataset, "with_log", lambda _, work: asyncio.run(work(log)))
    show = ["dataset", "show", str(tmp_path / dataset.manifest.dataset_id), "--lineage"]
    done = await asyncio.to_thread(RUN.invoke, app, [*show, "--json"])
    assert done.exit_code == 0, done.output
    lineage = json.loads(done.output)["lineage"]
    assert lineage["versions"] == ["assistant-v1.1"]
    made_of = {row["row"]: (row["feedback"], row["traces"]) for row in lineage["rows"]}
    assert made_of == {f"pair-{n:04}": ([f"f{n}:0"], [f"t{n}"]) for n in range(30)}
    done = await asyncio.to_thread(RUN.invoke, app, show)
    assert "assistant-v1.1" in done.output
    assert "f0:0" in done.output


async def test_rows_of_kto_and_of_imports_have_the_lineage_that_there_is() -> None:
    log = MemoryLog()
    event = pair_event(1, traces=("t1",))
    await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    offsets = {f"{PREFERENCES}/{n}": 1 for n in range(12)}
    rows = {"train.jsonl": ["pair-0001/chosen", "imported"]}
    found = await read_lineage(log, "d", model=MODEL, offsets=offsets, rows=rows)
    assert [tuple(row) for row in found.rows] == [
        ("train.jsonl", "pair-0001/chosen", ("f1:0",), ("t1",)),
        ("train.jsonl", "imported", (), ()),
    ]


@pytest.mark.parametrize("readable", [True, False])
async def test_a_dataset_is_built_by_the_training_service_and_shown(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    uri = str(folders[0]) if readable else "/nowhere"
    asked: list[TrainingRequested] = []

    async def run_job(_: Any, request: TrainingRequested, *__: Any) -> TrainingProgress:
        asked.append(request)
        reference = DatasetRef(dataset_id="d-1", uri=uri, sha256="0" * 64, rows=7)
        return TrainingProgress(
            job_id=request.job_id, model=MODEL, method=request.method,
            phase=RunPhase.succeeded, dataset=reference, at=request.requested_at,
        )  # fmt: skip

    monkeypatch.setattr(dataset_build, "run_job", run_job)
    monkeypatch.setattr(dataset_build, "with_log", lambda _, work: asyncio.run(work(MemoryLog())))
    build = ["dataset", "build", "--method", "kto", "--reason", "a look"]
    done = await asyncio.to_thread(RUN.invoke, app, build)
    assert done.exit_code == 0, done.output
    (request,) = asked
    assert (request.method, request.algorithm, request.builds_dataset) == ("dpo", "kto", True)
    assert "d-1" in done.output
    assert ("train.jsonl" in done.output) == readable
    assert ("cannot be read from here" in done.output) != readable
