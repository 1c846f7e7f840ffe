"""Files of a backup: one per partition, compressed lines of JSON, and a manifest with their hashes."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.cli.errors import CliError, Exit

MANIFEST = "manifest.json"
FORMAT = 1
BLOCK = 1 << 20


class StoredRecord(NamedTuple):
    """One record with all that a broker keeps of it."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class PartitionFile(BaseModel):
    """One partition: its offsets [start, end) and the file that holds its records."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: int = Field(ge=0)
    end: int = Field(ge=0)
    records: int = Field(ge=0)
    sha256: str


class TopicFiles(BaseModel):
    """One topic: whether its log is compacted, and its partitions."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    compacted: bool
    partitions: tuple[PartitionFile, ...]


class BackupManifest(BaseModel):
    """What is in a backup. `groups`: consumer group -> topic -> committed offset by partition."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = FORMAT
    topics: dict[str, TopicFiles]
    groups: dict[str, dict[str, dict[int, int]]]

    def save(self, folder: Path) -> None:
        """Write it; a folder without one holds no backup."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=1))


def load(folder: Path) -> BackupManifest:
    """The manifest of a folder, once every file has the hash that it names.

    Raises:
        CliError: there is none, it is of another format, or a file is missing or damaged.
    """
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise CliError(f"{folder}: no backup that can be read: {error}", Exit.usage) from error
    if manifest.format != FORMAT:
        raise CliError(
            f"{folder}: a backup of format {manifest.format}, this release reads {FORMAT}",
            Exit.usage,
        )
    for topic, files in manifest.topics.items():
        for number, partition in enumerate(files.partitions):
            path = place(folder, topic, number)
            if not path.exists() or file_hash(path) != partition.sha256:
                raise CliError(f"{path}: missing or damaged; take another backup", Exit.failed)
    return manifest


def place(folder: Path, topic: str, partition: int) -> Path:
    """Where a partition's records are."""
    return folder / f"{topic}.{partition}.jsonl.gz"


def encode(record: StoredRecord) -> bytes:
    """A record as a line of its partition's file."""
    line = (*record[:2], _text(record.key), _text(record.value))
    headers = [(name, _text(value)) for name, value in record.headers]
    return orjson.dumps((*line, headers)) + b"\n"


def read(path: Path) -> Iterator[StoredRecord]:
    """The records of a partition's file."""
    with gzip.open(path, "rb") as lines:
        for line in lines:
            offset, timestamp_ms, key, value, headers = orjson.loads(line)
            pairs = tuple((name, _bytes(text)) for name, text in headers)
            yield StoredRecord(offset, timestamp_ms, _bytes(key), _bytes(value), pairs)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
