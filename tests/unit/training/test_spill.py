"""Rows that spill to disk: the same datasets, in memory that does not grow with them."""

from __future__ import annotations

import json
import random
import tempfile
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.datasets import GROWTH, dpo_dataset, measured
from services.training import preference_fold, spill, thumbs
from services.training.dataset_manifest import Dataset
from services.training.dataset_rows import TRAIN
from services.training.dataset_store import DatasetStore, read_import
from services.training.errors import DiskFull
from services.training.importing import ImportedRows
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from services.training.spill import SpilledTable, keep, require_room, sorted_rows, spilled
from shared.contracts.events.preferences import PairSource
from shared.contracts.events.training import TrainingMethod
from shared.contracts.topics import PREFERENCES
from shared.testing.log import MemoryLog
from tests.support.small_disk import small_disk
from tests.unit.training.builders import MODEL, example_event, pair_event, retraction, turns

SMALL = 50
KINDS = [("dpo", False), ("reward", False), ("dpo", True), ("reward", True), ("sft", False)]
RULES = DatasetRules(
    prompts=20,
    ai_share=0.2,
    tenant_share=0.6,
    label_share=0.6,
    lag_weight=0.5,
    lineage=("v2", "v1"),
)


@pytest.fixture
def few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spill_after(monkeypatch, 7)


def spill_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(spill, "SPILL_ROWS", rows)
    monkeypatch.setattr(spill, "SORT_ROWS", rows)
    monkeypatch.setattr(preference_fold, "SPILL_ROWS", rows)
    monkeypatch.setattr(thumbs, "RUN_ROWS", rows)


async def some_log() -> MemoryLog:
    log, rng = MemoryLog(), random.Random(3)
    events: list[Any] = []
    for number in range(200):
        question = rng.randrange(80)
        texts = [f"a good answer, and fine, {question}", f"the other reply {question}", "short"]
        chosen, rejected = rng.sample(texts, 2)
        events.append(
            pair_event(
                number,
                messages=turns(f"question {question}"),
                chosen=chosen,
                rejected=rejected,
                source=rng.choice([PairSource.vote, PairSource.correction, PairSource.synthetic]),
                tenant=rng.choice(["acme", "globex"]),
                raters=(f"r{rng.randrange(30)}",),
                panel=rng.choice(["", "", "judge"]),
                chosen_version=rng.choice(["v1", "v2"]),
            )
        )
        told = {"messages": turns(f"question {rng.randrange(300)}"), "label": rng.random() < 0.6}
        events.append(example_event(number).model_copy(update=told))
    events += [retraction(f"pair-{number:04}") for number in range(0, 200, 37)]
    for event in events:
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    return log


def imported(rows: int, form: str) -> ImportedRows:
    rng, lines = random.Random(5), list[bytes]()
    for number in range(rows):
        asked = rng.randrange(rows)
        texts = [f"an answer about {asked} and so on", f"something else entirely, {asked}", "no"]
        row: dict[str, Any] = {"prompt": f"asked {asked}", "meta": {"source": "ai"}}
        if number % 5:
            del row["meta"]
        if form == "labelled":
            row |= {"completion": rng.choice(texts), "label": rng.random() < 0.5}
        elif form == "shown":
            row["completion"] = [{"role": "assistant", "content": rng.choice(texts)}]
        else:
            row["chosen"], row["rejected"] = rng.sample(texts, 2)
        lines.append(json.dumps(row if number % 50 else {"bad": number}).encode() + b"\n")
    return ImportedRows("file:///rows.jsonl", BytesIO(b"".join(lines)))


async def datasets() -> list[Dataset]:
    log, made = await some_log(), list[Dataset]()
    for method, labelled in KINDS:
        form = "shown" if method == "sft" else "labelled" if labelled else "pairs"
        for rows in (None, imported(300, form)):
            dataset = await take_snapshot(
                log,
                model=MODEL,
                method=TrainingMethod(method),
                rules=RULES,
                labelled=labelled,
                imported=rows,
            )
            made.append(dataset)
    return made


async def test_datasets_are_the_same_bytes_wherever_their_rows_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = await datasets()
    spill_after(monkeypatch, 7)
    again = await datasets()
    assert [one.manifest.sha256 for one in again] == [one.manifest.sha256 for one in held]
    assert again == held
    assert all(one.manifest.files[TRAIN].rows > 10 for one in held)


async def test_memory_does_not_grow_with_the_rows_of_an_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spill_after(monkeypatch, SMALL)
    monkeypatch.setattr(spill, "SORT_ROWS", 400)
    monkeypatch.setattr(spill, "BATCH_ROWS", 10)
    monkeypatch.setattr(spill, "BUFFER_BYTES", 2_048)
    peaks: list[int] = []
    for rows in (100, 2_100, 6_300):  # the first one loads what is loaded once
        source = imported(rows, "pairs")
        tracemalloc.start()
        try:
            await dpo_dataset(source, RULES)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 4_200 * 50, peaks  # held rows are fifteen times that


@pytest.mark.verify
@pytest.mark.timeout(3 * 3600)
def test_a_million_rows_are_imported_in_the_memory_of_a_hundred_thousand() -> None:
    few, many = measured(100_000), measured(1_000_000)
    assert many["trained"] > 9 * few["trained"]
    assert many["peak_mib"] < GROWTH * few["peak_mib"]


def add_many(table: SpilledTable[str]) -> None:
    for number in range(20_000):
        table.add(str(number), b"x" * 1_000)


@pytest.mark.usefixtures("few_in_memory")
def test_a_full_disk_is_told_and_no_dataset_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with small_disk(scratch):
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        with pytest.raises(DiskFull, match=r"no room below .*TMPDIR"):
            spilled(f"{number} " * 1_000 for number in range(1_000))
        table = SpilledTable[str]()
        with pytest.raises(DiskFull, match=r"no room below .*TMPDIR"):
            add_many(table)
        assert not list(scratch.iterdir()), "a file without a name is gone with its reader"
    assert DatasetStore(f"file://{tmp_path}/datasets").names() == []


def test_an_import_for_which_there_is_no_room_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    monkeypatch.setattr(
        "services.training.dataset_store.require_room", lambda wanted: require_room(2**60 * wanted)
    )
    with pytest.raises(DiskFull, match=r"MiB are free below .*let TMPDIR name a larger disk"):
        read_import(str(tmp_path / "rows.jsonl"), ("/",))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers())), st.integers(1, 9))
def test_rows_are_sorted_and_kept_as_lists_are(rows: list[tuple[int, int]], run: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spill_after(patch, 3)

        def of(row: tuple[int, int]) -> int:
            return row[0]

        def wanted(row: tuple[int, int]) -> bool:
            return row[1] % 2 == 0

        ordered = sorted_rows(iter(rows), of, run)
        assert list(ordered) == sorted(rows, key=of)
        kept = keep(ordered, wanted)
        assert (list(kept), len(kept)) == ([one for one in ordered if wanted(one)], len(list(kept)))
        assert list(spilled(iter(rows))) == rows


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.binary(max_size=3), st.integers(0, 3))))
def test_a_table_is_a_dictionary(steps: list[tuple[str, bytes, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spill_after(patch, 3)
        table, known = SpilledTable[str](), dict[str, bytes]()
        for key, value, step in steps:
            if step == 0:
                assert table.add(key, value) == (key not in known)
                known.setdefault(key, value)
            elif step == 1:
                table.put(key, value)
                known[key] = value
            elif step == 2:
                assert table.first(key, value) == known.setdefault(key, value)
            else:
                assert table.pop(key) == (known.pop(key, None) is not None)
            assert (key in table) == (key in known)
        assert len(table) == len(known)
        assert list(table.values()) == [known[key] for key in sorted(known)]
