"""Erasure in stored datasets: rows and prompts go, versions are marked, and a kill leaves no half."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from fsspec.implementations.local import LocalFileSystem

from services.training.dataset_manifest import Dataset, FilePlace
from services.training.dataset_rows import JUDGE, LEFT_OUT, PROMPTS, TRAIN
from services.training.dataset_store import DatasetStore
from services.training.erasure import DatasetEraser, rows_of
from services.training.errors import StoreUnavailable
from services.training.rebuild import differences, rebuild
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from services.training.workspace import ResumeState, Workspace
from shared.clock import SystemClock
from shared.contracts.events.preferences import ERASED, PreferenceRetracted
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import DatasetRef, record_key
from shared.contracts.topics import PREFERENCES, VERSIONS
from shared.registry.follow import RegistryFollower
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.training.builders import MODEL, NOW, example_event, pair_event, record

VERSION = f"{MODEL}-v1.1"


async def a_dataset(log: MemoryLog, store: DatasetStore, *, prompts: int = 50) -> Dataset:
    """A stored dataset of pairs and prompts, with a version that was trained on it."""
    events = [*(pair_event(n) for n in range(40)), *(example_event(n) for n in range(20))]
    for event in events:
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    rules = DatasetRules(prompts=prompts, judge_share=0.0)
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.dpo, rules=rules)
    store.write(dataset)
    reference: DatasetRef = dataset.reference(store.root)
    made = record(VERSION, dataset=reference)
    await log.publish(VERSIONS, key=record_key(VERSION), event=made, event_id="record")
    return dataset


def trained_ids(dataset: Dataset) -> list[str]:
    return [
        f"pair-{number:04}"
        for number in range(40)
        if f"pair-{number:04}".encode() in dataset.files[TRAIN]
    ]


async def erase(log: MemoryLog, *names: str) -> None:
    for name in names:
        event = PreferenceRetracted(pair_id=name, tenant="default", reason=ERASED, created_at=NOW)
        await log.publish(PREFERENCES, key=name, event=event, event_id=f"{ERASED}:{name}")


@asynccontextmanager
async def eraser_of(
    log: MemoryLog, store: DatasetStore, jobs: Path
) -> AsyncIterator[tuple[DatasetEraser, RegistryFollower]]:
    """An eraser that has read the log to its end."""
    versions = RegistryFollower(log)
    eraser = DatasetEraser(log, versions, store, jobs, SystemClock())
    tasks = [asyncio.create_task(one) for one in (versions.run(), eraser.follow())]
    await versions.caught_up(60.0)
    await eraser.caught_up(60.0)
    try:
        yield eraser, versions
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_rows_and_prompts_go_the_version_is_marked_and_a_rebuild_is_the_same_bytes(
    tmp_path: Path,
) -> None:
    log, store = MemoryLog(partitions={VERSIONS: 1}), DatasetStore(f"file://{tmp_path}/datasets")
    dataset = await a_dataset(log, store)
    first, second, third = trained_ids(dataset)[:3]
    prompt = b'thumbed question 7"'
    assert prompt in dataset.files[PROMPTS]
    for job_id, dataset_id in (("touched", dataset.manifest.dataset_id), ("other", "x-dpo-1")):
        Workspace(tmp_path / "jobs", job_id).save(ResumeState(job_id=job_id, dataset_id=dataset_id))
    await erase(log, second, "example-0007")
    moved: list[int] = []
    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, versions):
        await eraser.sweep(lambda: moved.append(1))
        assert len(moved) > 60, "reading records and datasets is movement"
        await erase(log, first, third)  # the lines of the first sweep are counted with
        await eventually(lambda: eraser.erased == 4, "the second erasure is read")
        await eraser.sweep(lambda: None)
        await eventually(
            lambda: (
                (marks := versions.registry.get(VERSION)) is not None
                and marks.marks is not None
                and marks.marks.erased_rows == 3
            ),
            "the version is marked",
        )
        before = len(log.records[VERSIONS][0])
        await eraser.sweep(lambda: None)
        assert len(log.records[VERSIONS][0]) == before
    left = store.read(dataset.manifest.dataset_id)
    assert left is not None
    assert left.manifest.sha256 != dataset.manifest.sha256
    assert left.manifest.dataset_id == dataset.manifest.dataset_id
    every = b"".join(left.files.values())
    for gone in (first.encode(), second.encode(), third.encode(), prompt):
        assert gone not in every
    assert left.manifest.files[TRAIN].rows == dataset.manifest.files[TRAIN].rows - 3
    assert left.manifest.refused[ERASED] == 3
    lines = dataset.files[TRAIN].splitlines()
    erased_lines = [row.line for row in left.left_out if row.file == TRAIN]
    assert {lines[line - 1] for line in erased_lines} == set(lines[:3])
    made = await rebuild(log, left, ())
    assert differences(left, made) == []
    assert not Workspace(tmp_path / "jobs", "touched").folder.exists()
    assert Workspace(tmp_path / "jobs", "other").folder.exists()


async def test_rows_that_kto_makes_of_a_pair_and_its_judge_of_two_thumbs_go_too(
    tmp_path: Path,
) -> None:
    log, store = MemoryLog(), DatasetStore(f"file://{tmp_path}/datasets")
    pairs = [pair_event(n) for n in range(40)]
    thumbs = [
        example_event(n).model_copy(
            update={
                "label": n % 2 == 0,
                "completion": f"an answer that somebody rated {n}.",
                "raters": (f"rater-{n}",),
            }
        )
        for n in range(100)
    ]
    made: list[Dataset] = []
    for events, judge_share in ((thumbs, 0.4), ([*thumbs, *pairs], 0.0)):
        for event in events:
            await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
        rules = DatasetRules(judge_share=judge_share)
        made.append(
            await take_snapshot(
                log, model=MODEL, method=TrainingMethod.dpo, rules=rules, labelled=True
            )
        )
        store.write(made[-1])
    judge = orjson.loads(made[0].files[JUDGE].splitlines()[0])
    trained = trained_ids(made[1])[0]
    thumb = judge["meta"]["pair_id"].split("/")[1]
    assert f"{trained}/chosen".encode() in made[1].files[TRAIN]
    await erase(log, thumb, trained)
    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):
        await eraser.sweep(lambda: None)
    left = [store.read(one.manifest.dataset_id) for one in made]
    assert all(left)
    every = b"".join(data for one in left if one for data in one.files.values())
    for gone in (thumb.encode(), judge["rejected"].encode(), trained.encode()):
        assert gone not in every


def as_an_earlier_release_stored_it(today: Dataset, folder: Path) -> tuple[str, str]:
    """Store a dataset by fewer rules; its name, and the hash that a record has of it."""
    manifest = orjson.loads(today.manifest.encode())
    for rule in ("lag_weight", "lineage", "ai_share", "augmented_share", "people_only"):
        del manifest["rules"][rule]
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2
    data = orjson.dumps(manifest, option=options) + b"\n"
    digest = hashlib.sha256(data).hexdigest()
    name = f"{MODEL}-dpo-{digest[:16]}"
    (folder / today.manifest.dataset_id).rename(folder / name)
    (folder / name / "manifest.json").write_bytes(data)
    return name, digest


async def test_a_dataset_of_an_earlier_release_has_the_hash_of_its_record(tmp_path: Path) -> None:
    log, store = MemoryLog(partitions={VERSIONS: 1}), DatasetStore(f"file://{tmp_path}/datasets")
    name, digest = as_an_earlier_release_stored_it(
        await a_dataset(log, store), tmp_path / "datasets"
    )
    stored = store.read(name)
    assert stored is not None
    assert (stored.manifest.dataset_id, stored.manifest.sha256) == (name, digest)
    assert stored.reference(store.root).sha256 == digest
    assert [one.sha256 for one in store.snapshots(MODEL, TrainingMethod.dpo)] == [digest]
    assert differences(stored, await rebuild(log, stored, ())) == [], "this release makes the same"
    left = stored.erase({FilePlace(TRAIN, 1)})
    assert left.manifest.sha256 != digest, "what has other rows has another hash"


async def test_a_dataset_of_an_earlier_release_keeps_its_name_and_loses_its_rows(
    tmp_path: Path,
) -> None:
    log, store = MemoryLog(partitions={VERSIONS: 1}), DatasetStore(f"file://{tmp_path}/datasets")
    today = await a_dataset(log, store)
    name, _ = as_an_earlier_release_stored_it(today, tmp_path / "datasets")
    assert [one.dataset_id for one in store.snapshots(MODEL, TrainingMethod.dpo)] == [name]
    gone = trained_ids(today)[0]
    await erase(log, gone)
    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):
        await eraser.sweep(lambda: None)
    assert store.names() == [name]
    left = store.read(name)
    assert left is not None
    assert gone.encode() not in b"".join(left.files.values())
    assert left.manifest.dataset_id == name
    assert differences(left, await rebuild(log, left, ())) == []


WRITES = ("makedirs", "open", "mv", "rm")


def is_read(name: str, paths: tuple[Any, ...]) -> bool:
    """Whether this call of a file system opens a file to read it."""
    return name == "open" and paths[1:2] in ((), ("rb",))


@pytest.mark.parametrize("writes", range(9))
async def test_killed_between_any_two_files_the_dataset_is_whole_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    log, store = MemoryLog(), DatasetStore(f"file://{tmp_path}/datasets")
    dataset = await a_dataset(log, store)
    gone = trained_ids(dataset)[0]
    await erase(log, gone)
    left = writes

    def killing(name: str) -> Callable[..., Any]:
        call = getattr(LocalFileSystem, name)

        def killed(self: LocalFileSystem, *paths: Any, **options: Any) -> Any:
            nonlocal left
            if is_read(name, paths):
                return call(self, *paths, **options)
            if not left:
                raise OSError("killed")
            left -= 1
            return call(self, *paths, **options)

        return killed

    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):
        with monkeypatch.context() as patch:
            for name in WRITES:
                patch.setattr(LocalFileSystem, name, killing(name))
            await eraser.sweep(lambda: None)
        found = store.read(dataset.manifest.dataset_id)
        assert found is not None
        assert bool(found.manifest.erased_from) == (writes > 7)  # the folder, six files, the move
    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):
        await eraser.sweep(lambda: None)
    found = store.read(dataset.manifest.dataset_id)
    assert found is not None
    assert [row.file for row in found.left_out] == [TRAIN]
    stored = [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()]
    assert len(stored) == len(found.files) + 1
    assert not any(gone.encode() in path.read_bytes() for path in stored)


@pytest.mark.parametrize("read", range(6))
async def test_a_reader_during_an_erasure_sees_one_dataset_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    log, store = MemoryLog(), DatasetStore(f"file://{tmp_path}/datasets")
    dataset = await a_dataset(log, store)
    await erase(log, trained_ids(dataset)[0])
    opened, reads = LocalFileSystem.open, 0
    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):

        def replaced(self: LocalFileSystem, *paths: Any, **options: Any) -> Any:
            nonlocal reads
            assert is_read("open", paths)
            reads += 1
            if reads == read + 1:
                erased = dataset.erase(frozenset(rows_of(dataset, eraser._erased, ())))
                with monkeypatch.context() as patch:
                    patch.setattr(LocalFileSystem, "open", opened)
                    store.replace(erased)
            return opened(self, *paths, **options)

        monkeypatch.setattr(LocalFileSystem, "open", replaced)
        found = store.read(dataset.manifest.dataset_id)
    assert found is not None
    assert found.manifest.erased_from == dataset.manifest.dataset_id


async def test_two_replicas_that_erase_at_once_leave_a_whole_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one clears between this one's files and its manifest, and takes them for old."""
    log, store = MemoryLog(), DatasetStore(f"file://{tmp_path}/datasets")
    dataset = await a_dataset(log, store)
    first, both = (frozenset(FilePlace(TRAIN, line) for line in lines) for lines in ((1,), (1, 2)))
    store.replace(dataset.erase(first))
    move, moves = LocalFileSystem.mv, 0

    def cleared(self: LocalFileSystem, *paths: Any, **options: Any) -> Any:
        nonlocal moves
        moves += 1
        if moves == 1:
            DatasetStore(store.root).drop_replaced(dataset.manifest.dataset_id)
        return move(self, *paths, **options)

    monkeypatch.setattr(LocalFileSystem, "mv", cleared)
    erased = dataset.erase(both)
    store.replace(erased)
    found = store.read(dataset.manifest.dataset_id)
    assert found is not None
    assert found.files == erased.files
    assert moves == 2


async def test_storage_that_is_away_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, store = MemoryLog(), DatasetStore(f"file://{tmp_path}/datasets")
    dataset = await a_dataset(log, store)
    await erase(log, trained_ids(dataset)[0])

    def away(_: Dataset) -> None:
        raise StoreUnavailable("away")

    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):
        with monkeypatch.context() as patch:
            patch.setattr(store, "replace", away)
            await eraser.sweep(lambda: None)
        await eraser.sweep(lambda: None)
    found = store.read(dataset.manifest.dataset_id)
    assert found is not None
    assert found.files[LEFT_OUT]


async def test_a_dataset_that_storage_refuses_holds_no_other_one_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, store = MemoryLog(), DatasetStore(f"file://{tmp_path}/datasets")
    datasets = [await a_dataset(log, store, prompts=number) for number in (40, 50)]
    first, second = sorted(one.manifest.dataset_id for one in datasets)
    await erase(log, trained_ids(datasets[0])[0])
    replace = store.replace

    def refuse_the_first(dataset: Dataset) -> None:
        if dataset.manifest.dataset_id == first:
            raise StoreUnavailable("this folder is read-only")
        replace(dataset)

    def left_out(name: str) -> bytes:
        found = store.read(name)
        assert found is not None
        return found.files[LEFT_OUT]

    async with eraser_of(log, store, tmp_path / "jobs") as (eraser, _):
        with monkeypatch.context() as patch:
            patch.setattr(store, "replace", refuse_the_first)
            await eraser.sweep(lambda: None)
        assert ERASED.encode() in left_out(second)
        assert ERASED.encode() not in left_out(first)
        await eraser.sweep(lambda: None)
    assert ERASED.encode() in left_out(first)
