"""What writes to a disk that is full keeps what was there, says so, and goes on once there is room.

The router's spool, the read model and the judge's evidence have their own tests beside their other
ones; here are the writers that have one file or folder to lose.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.inference.acceptances import Acceptance, Acceptances
from services.inference.errors import AcceptanceNotKept
from services.rollout.evidence import RolloutEvidence
from services.rollout.evidence_store import KEPT, EvidenceStore
from services.training.dataset_store import DatasetStore
from services.training.errors import StoreUnavailable
from shared.registry.adapters import AdapterUnavailable, fetch, publish
from tests.support.small_disk import small_disk
from tests.unit.training.test_snapshot import snapshot, some_log


def fill(disk: Path) -> Path:
    """A file that takes what is left of a small disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(os.urandom(4096)):
                pass
        except OSError:
            pass
    return filler


def add_many(kept: Acceptances, word: Acceptance) -> None:
    """More than a file may hold where a small disk only bounds the size of files."""
    for _ in range(100):
        kept.add(word)


def test_evidence_of_before_stays_and_the_next_is_kept_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path):
        store = EvidenceStore(tmp_path / "rollout")
        before = RolloutEvidence(rollout_id="r")
        assert store.save(before)
        filler = fill(tmp_path)
        larger = before.model_copy(update={"unreported": ({"x": "x" * 100_000},)})
        assert not store.save(larger)
        assert store.load("r") == before
        filler.unlink()
        assert store.save(before)


def test_evidence_of_an_unfinished_rollout_is_kept_however_many_came_after_it(
    tmp_path: Path,
) -> None:
    store = EvidenceStore(tmp_path)
    for number in range(KEPT + 3):
        assert store.save(RolloutEvidence(rollout_id=f"r{number}"))
        os.utime(max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime), (number, number))
    store.tidy({"r0"})
    found = [number for number in range(KEPT + 3) if store.load(f"r{number}") is not None]
    assert found == [0, *range(3, KEPT + 3)]


def test_an_acceptance_that_is_not_kept_does_not_hold(tmp_path: Path) -> None:
    word = Acceptance(
        version="v2",
        sha256="0" * 64,
        neighbours=("v1",),
        actor="key",
        reason="x" * 2000,
        at=datetime.now(UTC),
    )
    with small_disk(tmp_path):
        kept = Acceptances(tmp_path / "acceptances.json")
        kept.add(word)
        filler = fill(tmp_path)
        with pytest.raises(AcceptanceNotKept, match="make room"):
            add_many(kept, word.model_copy(update={"version": "v3"}))
        again = Acceptances(tmp_path / "acceptances.json")
        assert again.of("v2", "0" * 64) == {"v1"}
        assert again.of("v1", "") == kept.of("v1", "")
        filler.unlink()
        kept.add(word.model_copy(update={"version": "v4"}))


def test_an_adapter_is_cached_whole_or_not_at_all(tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    cache.mkdir()
    (source / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
    digest = publish(source, f"file://{tmp_path}/store")
    with small_disk(cache):
        filler = fill(cache)
        with pytest.raises((AdapterUnavailable, OSError)):
            fetch(f"file://{tmp_path}/store", digest, cache, roots=(str(tmp_path),))
        assert [path.name for path in cache.iterdir()] == ["filler"]
        filler.unlink()


def test_an_adapter_is_published_whole_or_not_at_all(tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    store.mkdir()
    (source / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
    with small_disk(store):
        filler = fill(store)
        with pytest.raises(AdapterUnavailable, match="cannot be written"):
            publish(source, f"file://{store}/v1")
        assert not [path for path in store.rglob("*") if path.is_file() and path != filler]
        filler.unlink()


async def test_a_dataset_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    dataset = await snapshot(await some_log())
    with small_disk(tmp_path):
        store = DatasetStore(f"file://{tmp_path}")
        filler = fill(tmp_path)
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            store.write(dataset)
        assert store.read(dataset.manifest.dataset_id) is None
        filler.unlink()
        store.write(dataset)
        assert store.read(dataset.manifest.dataset_id) == dataset
