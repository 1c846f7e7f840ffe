"""Files of a backup: what is written is read again, and what is damaged is refused before a write."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.backup_files import (
    BackupManifest,
    PartitionFile,
    StoredRecord,
    TopicFiles,
    encode,
    file_hash,
    load,
    place,
    read,
)
from services.cli.errors import CliError
from tests.support.command import ratchet_here

BYTES = st.none() | st.binary(max_size=20)
RECORDS = st.lists(
    st.builds(
        StoredRecord,
        offset=st.integers(0, 2**62),
        timestamp_ms=st.integers(0, 2**52),
        key=BYTES,
        value=BYTES,
        headers=st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=3).map(tuple),
    ),
    max_size=5,
)


@given(records=RECORDS)
def test_records_are_read_as_they_were_written(
    records: list[StoredRecord], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "records.gz"
    with gzip.open(path, "wb") as file:
        file.writelines(map(encode, records))
    assert list(read(path)) == records


def backup(folder: Path) -> BackupManifest:
    path = place(folder, "ratchet.feedback.v1", 0)
    with gzip.open(path, "wb") as file:
        file.write(encode(StoredRecord(7, 1, b"key", b"value")))
    partition = PartitionFile(start=7, end=8, records=1, sha256=file_hash(path))
    topics = {"ratchet.feedback.v1": TopicFiles(compacted=False, partitions=(partition,))}
    manifest = BackupManifest(topics=topics, groups={"g": {"ratchet.feedback.v1": {0: 8}}})
    manifest.save(folder)
    return manifest


def test_a_whole_backup_is_loaded(tmp_path: Path) -> None:
    assert backup(tmp_path) == load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "format"])
def test_a_damaged_backup_is_refused_with_what_is_wrong(tmp_path: Path, damage: str) -> None:
    manifest = backup(tmp_path)
    path = place(tmp_path, "ratchet.feedback.v1", 0)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "gone":
            path.unlink()
        case "manifest":
            (tmp_path / "manifest.json").unlink()
        case _:
            manifest.model_copy(update={"format": 2}).save(tmp_path)
    with pytest.raises(CliError, match="damaged" if damage in {"cut", "gone"} else "backup"):
        load(tmp_path)


def test_a_folder_that_is_there_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = ratchet_here("backup", "take", str(tmp_path), monkeypatch=monkeypatch, capsys=capsys)
    assert ran.status == 2
    assert "name a new one" in ran.err


def test_nobody_else_may_read_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "backup"
    monkeypatch.setenv("RATCHET_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr(
        "services.cli.backup.run_with_kafka", lambda *_: BackupManifest(topics={}, groups={})
    )
    ran = ratchet_here("backup", "take", str(folder), monkeypatch=monkeypatch, capsys=capsys)
    assert ran.status == 0, ran.err
    assert folder.stat().st_mode & 0o077 == 0
