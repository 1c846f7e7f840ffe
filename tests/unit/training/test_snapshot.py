from __future__ import annotations

import hashlib
import json
import random
import threading
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from pydantic import ValidationError

from benchmarks.datasets import dpo_dataset
from services.training import dataset_store
from services.training import snapshot as snapshots
from services.training.dataset_manifest import Dataset, Manifest
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
)
from services.training.dataset_store import DatasetStore, lay_out, read_import
from services.training.errors import BadDataset, StoreUnavailable
from services.training.importing import ImportedRows, read_pairs
from services.training.publish import upload
from services.training.settings import TrainingSettings
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from shared.contracts.events.base import Event
from shared.contracts.events.preferences import PairSource
from shared.contracts.events.training import TrainingMethod
from shared.contracts.topics import PREFERENCES
from shared.testing.log import MemoryLog
from tests.unit.training.builders import MODEL, example_event, pair_event, retraction

DPO = TrainingMethod.dpo
RULES = DatasetRules(prompts=20)


async def publish(log: MemoryLog, *events: Event) -> None:
    for event in events:
        pair_id: str = event.pair_id  # type: ignore[attr-defined]
        await log.publish(PREFERENCES, key=pair_id, event=event, event_id=pair_id)


async def some_log() -> MemoryLog:
    log = MemoryLog()
    await publish(
        log,
        *(pair_event(n) for n in range(40)),
        *(pair_event(100 + n, panel="judge") for n in range(12)),
        *(example_event(n) for n in range(30)),
        retraction("pair-0007"),
    )
    return log


ROOTS = ("/", "broken://bucket", "nonsense://x", "memory://x")


async def snapshot(log: MemoryLog, **options: object) -> Dataset:
    return await take_snapshot(log, model=MODEL, method=DPO, rules=RULES, **options)  # type: ignore[arg-type]


async def test_a_rebuild_is_the_same_bytes_whatever_came_since() -> None:
    log = await some_log()
    first = await snapshot(log)
    await publish(log, *(pair_event(n) for n in range(50, 60)), retraction("pair-0001"))
    await log.append(PREFERENCES, key="x", value=b"{broken")
    again = await snapshot(log, until=first.manifest.offsets)
    assert dict(again.files) == dict(first.files)
    assert again.manifest.encode() == first.manifest.encode()
    later = await snapshot(log)
    assert later.manifest.sha256 != first.manifest.sha256
    assert b"pair-0001" not in later.files[TRAIN] + later.files[HELDOUT]


async def test_the_manifest_says_what_is_in_it() -> None:
    panel_only = RULES.model_copy(update={"judge_share": 0.0})
    log = await some_log()
    manifest = (await take_snapshot(log, model=MODEL, method=DPO, rules=panel_only)).manifest
    rows = {name: file.rows for name, file in manifest.files.items()}
    assert rows[TRAIN] + rows[HELDOUT] == 39
    assert (rows[JUDGE], rows[PROMPTS], manifest.retracted) == (12, 20, 1)
    assert sum(manifest.offsets.values()) == 83
    assert manifest.card["category"] == {"factual_qa": rows[TRAIN]}
    assert manifest.dataset_id == f"{MODEL}-dpo-{manifest.sha256[:16]}"


async def test_an_import_is_trained_on_and_judged_by_rows_of_its_own() -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"other {n}"}],
            "chosen": f"yes it is {n}",
            "rejected": f"no it is not {n}",
        }
        for n in range(60)
    ]
    imported = ImportedRows("file://x.jsonl", BytesIO("\n".join(map(json.dumps, rows)).encode()))
    dataset = await snapshot(await some_log(), imported=imported)
    assert b"yes it is" in dataset.files[TRAIN]
    assert b"good answer" not in dataset.files[TRAIN]
    counts = {name: dataset.files[name].count(b"\n") for name in (TRAIN, HELDOUT, JUDGE)}
    assert sum(counts.values()) == 60
    assert all(counts.values())
    for name in (HELDOUT, JUDGE, PROMPTS):
        assert b"question" not in dataset.files[name], "the log's prompts are another product's"
        assert b"other" in dataset.files[name]
    assert dataset.manifest.offsets == {}
    assert (dataset.manifest.origin, dataset.manifest.source) == ("import", "file://x.jsonl")


async def test_a_long_selection_of_rows_counts_as_movement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, moved, selected = await some_log(), threading.Semaphore(0), snapshots._select

    def slow(*given: Any, **named: Any) -> Any:
        while moved.acquire(blocking=False):
            pass
        for _ in range(3):
            assert moved.acquire(timeout=60.0), "nobody says that it is alive"
        return selected(*given, **named)

    monkeypatch.setattr(snapshots, "_select", slow)
    monkeypatch.setattr(snapshots, "BEAT_S", 0.01)
    made = await take_snapshot(log, model=MODEL, method=DPO, rules=RULES, alive=moved.release)
    monkeypatch.undo()
    assert made == await snapshot(log)


async def test_sft_from_the_log_takes_what_people_wrote() -> None:
    log = await some_log()
    await publish(log, *(pair_event(200 + n, source=PairSource.correction) for n in range(9)))
    dataset = await take_snapshot(log, model=MODEL, method=TrainingMethod.sft, rules=RULES)
    rows = dataset.files[TRAIN].count(b"\n") + dataset.files[HELDOUT].count(b"\n")
    assert rows == 9


async def test_nothing_to_train_on_says_what_to_do() -> None:
    log = MemoryLog()
    await publish(log, pair_event(1, chosen="short"))
    with pytest.raises(BadDataset, match=r"no rows.*1 too_short.*give dataset_uri"):
        await snapshot(log)


async def test_a_stored_dataset_comes_back_whole(tmp_path: Path) -> None:
    store = DatasetStore(f"file://{tmp_path}")
    dataset = await snapshot(await some_log())
    store.write(dataset)
    store.write(dataset)
    name = dataset.manifest.dataset_id
    assert store.read(name) == dataset
    assert store.read("nothing") is None
    lay_out(dataset, tmp_path / "job")
    assert (tmp_path / "job" / TRAIN).read_bytes() == dataset.files[TRAIN]


async def test_a_dataset_without_its_manifest_is_none(tmp_path: Path) -> None:
    store = DatasetStore(f"file://{tmp_path}")
    dataset = await snapshot(await some_log())
    store.write(dataset)
    (tmp_path / dataset.manifest.dataset_id / "manifest.json").unlink()
    assert store.read(dataset.manifest.dataset_id) is None
    assert store.snapshots(MODEL, DPO) == []
    store.write(dataset)
    assert store.snapshots(MODEL, DPO) == [dataset.manifest]


async def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    store = DatasetStore(f"file://{tmp_path}")
    dataset = await snapshot(await some_log())
    store.write(dataset)
    with (tmp_path / dataset.manifest.dataset_id / TRAIN).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(BadDataset, match="not those of the manifest"):
        store.read(dataset.manifest.dataset_id)


async def test_snapshots_are_in_the_order_of_their_offsets(tmp_path: Path) -> None:
    store = DatasetStore(f"file://{tmp_path}")
    assert store.snapshots(MODEL, DPO) == []
    log = await some_log()
    first = await snapshot(log)
    await publish(log, pair_event(70))
    second = await snapshot(log)
    for dataset in (second, first):
        store.write(dataset)
    assert store.snapshots(MODEL, DPO) == [first.manifest, second.manifest]
    assert store.snapshots(MODEL, TrainingMethod.sft) == []
    assert store.snapshots("another", DPO) == []


async def test_any_fsspec_root_will_do() -> None:
    store = DatasetStore("memory://datasets-of-a-test")
    dataset = await snapshot(await some_log())
    store.write(dataset)
    assert store.read(dataset.manifest.dataset_id) == dataset
    fsspec.filesystem("memory").rm("/datasets-of-a-test", recursive=True)


async def test_a_storage_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        DatasetStore(f"file://{tmp_path}/file").write(await snapshot(await some_log()))


def test_an_import_is_read_without_holding_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_store, "SPOOL_BYTES", 100_000)
    monkeypatch.setattr(dataset_store, "COPY_BYTES", 50_000)
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "notes": "x" * 20_000}
    line = json.dumps(row).encode() + b"\n"
    (tmp_path / "pairs.jsonl").write_bytes(line * 1_000)
    tracemalloc.start()
    try:
        imported = read_import(str(tmp_path / "pairs.jsonl"), ROOTS)
        digest = imported.sha256
        rows = read_pairs(imported.lines())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == 1_000
    assert digest == hashlib.sha256(line * 1_000).hexdigest()
    assert peak < 5_000_000  # of 20 MB
    imported.file.close()


async def test_a_row_of_an_import_takes_a_few_kilobytes_until_it_is_a_line() -> None:
    rng = random.Random(1)
    lines = b"".join(
        json.dumps(
            {
                "prompt": f"{rng.random()} " * 10,
                "chosen": f"{rng.random()} " * 12,
                "rejected": f"not {rng.random()} so",
            }
        ).encode()
        + b"\n"
        for _ in range(2_000)
    )
    tracemalloc.start()
    try:
        dataset = await dpo_dataset(ImportedRows("file:///pairs.jsonl", BytesIO(lines)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert dataset.manifest.files[TRAIN].rows > 1_000
    assert peak / 2_000 < 3_000


def test_an_import_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="is no file; give the URI"):
        read_import(f"file://{tmp_path}/none.jsonl", ROOTS)
    with pytest.raises(BadDataset, match="nonsense"):
        read_import("nonsense://x/y", ROOTS)
    (tmp_path / "some.jsonl").write_bytes(b"{}")
    found = read_import(str(tmp_path / "some.jsonl"), ROOTS)
    with found.file:
        assert list(found.lines()) == [b"{}"]


class BrokenStore(AbstractFileSystem):
    """Fails as a storage library does with an error of its own, which is no OSError."""

    protocol = "broken"

    class Away(Exception):
        """Like botocore's EndpointConnectionError."""

    def info(self, path: str, **_: object) -> dict[str, object]:
        raise self.Away(path)

    def exists(self, path: str, **_: object) -> bool:
        raise self.Away(path)


def test_a_storage_librarys_own_error_is_a_store_away(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    store = DatasetStore("broken://bucket/datasets")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        store.read("assistant-0")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        read_import("broken://bucket/pairs.jsonl", ROOTS)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        upload(tmp_path, "broken://bucket", "v1")


@pytest.mark.parametrize("dataset_id", ["../../x", "/etc", "", "a/b"])
def test_a_dataset_is_read_by_name_only(tmp_path: Path, dataset_id: str) -> None:
    with pytest.raises(BadDataset, match="dataset_id: a name has"):
        DatasetStore(f"file://{tmp_path}/datasets").read(dataset_id)


async def test_a_manifest_names_the_files_of_a_dataset_and_no_others(tmp_path: Path) -> None:
    """What it names is written to a job's folder."""
    manifest = (await snapshot(await some_log())).manifest
    fields = manifest.model_dump(mode="json")
    fields["files"]["../../escaped"] = fields["files"]["train.jsonl"]
    with pytest.raises(ValidationError, match="no file of a dataset"):
        Manifest.model_validate(fields)


@pytest.mark.parametrize(
    "uri", ["/etc/passwd", "http://169.254.169.254/x", "zip::/imports/x.zip", "/imports/../x"]
)
def test_imports_come_from_allowed_roots_only(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a storage outside the roots was opened")

    monkeypatch.setattr(dataset_store.fsspec, "url_to_fs", asked)
    with pytest.raises(BadDataset, match="RATCHET_TRAINING_IMPORT_ROOTS"):
        read_import(uri, ("/imports",))


def test_outside_the_local_profile_imports_lie_beside_the_datasets() -> None:
    given = {"datasets_uri": "s3://ratchet/datasets"}
    assert TrainingSettings(**given).readable_import_roots == ("/",)
    production = TrainingSettings(
        **given, profile="production", kafka_security_protocol="PLAINTEXT"
    )
    assert production.readable_import_roots == ("s3://ratchet/datasets",)
    chosen = TrainingSettings(**given, import_roots="/imports, s3://theirs")
    assert chosen.readable_import_roots == ("/imports", "s3://theirs")
