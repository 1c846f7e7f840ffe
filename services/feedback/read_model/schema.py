"""Schema of the read model's SQLite, and its connections.

The file is disposable: another FORMAT, a damaged file or another log is answered by deleting it
and folding the log again.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

FORMAT: Final = 3
"""Kept in `user_version`; a file of another format is folded anew."""
FILE_NAME: Final = "read-model.sqlite"
PAGE_BYTES: Final = 4096
BUSY_TIMEOUT_S: Final = 5.0

SCHEMA: Final = """
CREATE TABLE offsets (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE revisions (
    tenant TEXT NOT NULL, feedback_id TEXT NOT NULL, trace_id TEXT NOT NULL,
    revision INTEGER NOT NULL, received_us INTEGER NOT NULL, withdrawn INTEGER NOT NULL,
    type TEXT NOT NULL, stored_ms INTEGER NOT NULL, body TEXT NOT NULL,
    UNIQUE (tenant, feedback_id, trace_id, revision, received_us, withdrawn)
);
CREATE INDEX revisions_by_age ON revisions (stored_ms);
CREATE TABLE traces (
    tenant TEXT NOT NULL, trace_id TEXT NOT NULL, feedback_id TEXT NOT NULL,
    stored_ms INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (tenant, trace_id, feedback_id)
) WITHOUT ROWID;
CREATE INDEX traces_by_age ON traces (stored_ms);
CREATE TABLE loaded_traces (
    tenant TEXT NOT NULL, trace_id TEXT NOT NULL, stored_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, trace_id)
) WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL, source TEXT NOT NULL, name TEXT NOT NULL,
    stored_ms INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    retracted_offset INTEGER, retracted_us INTEGER, retracted_reason TEXT, body TEXT NOT NULL,
    UNIQUE (tenant, source, name)
);
CREATE INDEX documents_by_age ON documents (stored_ms);
CREATE TABLE entries (
    tenant TEXT NOT NULL, kind TEXT NOT NULL, at_us INTEGER NOT NULL, name TEXT NOT NULL,
    document INTEGER NOT NULL, version TEXT NOT NULL, other_version TEXT NOT NULL,
    category TEXT NOT NULL, segment TEXT NOT NULL, locale TEXT NOT NULL, tags TEXT NOT NULL,
    PRIMARY KEY (tenant, kind, at_us, name)
) WITHOUT ROWID;
CREATE INDEX entries_by_document ON entries (document);
CREATE TABLE causes (
    tenant TEXT NOT NULL, feedback_id TEXT NOT NULL, document INTEGER NOT NULL,
    PRIMARY KEY (tenant, feedback_id, document)
) WITHOUT ROWID;
CREATE INDEX causes_by_document ON causes (document);
CREATE TABLE suspicions (
    tenant TEXT NOT NULL, name TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
"""


class OtherFormat(Exception):
    """The file was written by another version of the service."""


def database_path(data_dir: Path) -> Path:
    """Where a replica keeps its read model."""
    return data_dir / "feedback" / FILE_NAME


def delete_database(path: Path) -> None:
    """Delete a read model with its write-ahead log. Readers keep what they have open."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The one writing connection: write-ahead log, transactions by hand.

    Raises:
        OtherFormat: the file is of another format.
        sqlite3.Error: it cannot be opened, or is damaged.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit may be lost with the machine, never half of one: its offsets are lost with it.
        connection.execute("PRAGMA synchronous = NORMAL")
        # What an erasure deletes must not stay readable in free pages.
        connection.execute("PRAGMA secure_delete = ON")
        (written,) = connection.execute("PRAGMA user_version").fetchone()
        if written == 0:
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif written != FORMAT:
            raise OtherFormat(f"format {written}, this service writes {FORMAT}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection for one query; it sees one state of the model per transaction.

    Raises:
        sqlite3.Error: there is no read model yet, or it is damaged.

    """
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S
    )
    connection.row_factory = sqlite3.Row
    return connection
