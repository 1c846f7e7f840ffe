"""User key store: the keys of `user-keys.v1` in an SQLite file, wrapped as they are in the topic.

The file is disposable: a lost, damaged or foreign one is made anew from the topic. Whoever has it can
read nothing without the secret, and a destroyed key leaves it, its free pages and its write-ahead log.

A new file is filled by appending, and gets its indexes once the topic was read to its end: a million
keys in random order would otherwise rewrite every page of both indexes with each batch.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import structlog

from shared.contracts.topics import USER_KEYS
from shared.kafka.log import Positions, Record, TopicReplaced
from shared.kafka.user_key_files import claim, delete
from shared.kafka.user_key_records import ID_BYTES, content_of, name_of, number_of

log = structlog.get_logger(__name__)

FORMAT: Final = 1
"""Kept in `user_version`; a file of another format is made anew."""
BUSY_TIMEOUT_S: Final = 5.0
CACHE_KIB: Final = 8192
"""Memory of each of the two connections for pages of the file."""

SCHEMA: Final = """
CREATE TABLE about (origin TEXT NOT NULL, settled INTEGER NOT NULL);
CREATE TABLE newest (
    partition INTEGER PRIMARY KEY, offset INTEGER NOT NULL, stored_ms INTEGER NOT NULL,
    name TEXT NOT NULL
);
CREATE TABLE keys (
    number INTEGER PRIMARY KEY, key_id INTEGER NOT NULL, person INTEGER NOT NULL,
    subject BLOB NOT NULL, tenant TEXT NOT NULL, wrapped BLOB
);
"""
SETTLE: Final = (
    "CREATE INDEX keys_by_id ON keys (key_id)",
    "DELETE FROM keys WHERE number < "
    "(SELECT max(number) FROM keys AS later WHERE later.key_id = keys.key_id)",
    "DELETE FROM keys WHERE wrapped IS NULL",
    "CREATE INDEX keys_by_person ON keys (person)",
    "UPDATE about SET settled = 1",
)
SELECT: Final = "SELECT key_id, subject, tenant, wrapped FROM keys "


class WrappedKey(NamedTuple):
    """A stored key."""

    key_id: str
    subject: str
    tenant: str
    wrapped: bytes
    """Empty where its record could not be read: it is there, and opens nothing."""

    @property
    def name(self) -> str:
        """Key of its record."""
        return f"{self.subject}:{self.key_id}"


@dataclass
class Taken:
    """What some records did."""

    issued: list[tuple[str, str]] = field(default_factory=list)
    """Subjects and ids of keys."""
    destroyed: list[tuple[str, str]] = field(default_factory=list)


class UserKeyStore:
    """See the module. One thread writes at a time, while others may read."""

    def __init__(self, folder: Path | None, origin: str = "") -> None:
        """Take where the file is kept, and which brokers the topic belongs to.

        Without a folder the file is a temporary one, which has no name as soon as it is open.
        """
        self._folder = folder
        self._origin = origin
        self._path: Path | None = None
        self._lock: BinaryIO | None = None
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._reads = threading.Lock()
        """Held while a thread reads: one connection serves one at a time."""
        self._unclean = False
        """The write-ahead log may still hold a destroyed key."""
        self.settled = False
        """Whether all that the topic had once is stored, so that keys may be looked for."""

    def open(self) -> None:
        """Open the file, or make a new one; a second call does nothing.

        Raises:
            OSError: the folder cannot be written.
            sqlite3.OperationalError: the file cannot.

        """
        if self._writing is not None:
            return
        if self._folder is not None and self._path is None:
            self._path, self._lock = claim(self._folder)
        try:
            fits = self._connect()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            log.warning("user_keys.file_damaged", path=str(self._path), error=str(error))
            fits = False
        if not fits:
            self.reset()

    def reset(self) -> None:
        """Replace the file by an empty one.

        Raises:
            OSError: it cannot be deleted.
            sqlite3.OperationalError: it cannot be made.

        """
        self._disconnect()
        if self._path is not None:
            delete(self._path)
        self._connect()

    def close(self) -> None:
        """Close the file and leave it to the next process."""
        self._disconnect()
        if self._lock is not None:
            self._lock.close()
        self._path = self._lock = None

    def positions(self) -> Positions:
        """Where reading goes on: at the newest record that is stored, which tells the topic."""
        return {(USER_KEYS, partition): offset for partition, offset in self._newest().items()}

    def take(self, records: Sequence[Record]) -> Taken:
        """Store records in one transaction, with their offsets.

        Raises:
            TopicReplaced: one is before what is stored, or another one stood at its place.
            sqlite3.Error: nothing was stored; the same records may be taken again.

        """
        connection = self._opened(self._writing)
        taken = Taken()
        newest = self._newest()
        with _transaction(connection):
            for record in records:
                before = newest.get(record.partition, -1)
                if record.offset <= before:
                    self._compare(record, before)
                    continue
                newest[record.partition] = record.offset
                self._apply(connection, record, taken)
                connection.execute(
                    "INSERT OR REPLACE INTO newest VALUES (?, ?, ?, ?)",
                    (record.partition, record.offset, record.timestamp_ms, record.key),
                )
        self._clean()
        return taken

    def settle(self) -> None:
        """Make a file whole that was filled by appending; a second call does nothing.

        Raises:
            sqlite3.Error: it is as it was.

        """
        if self.settled:
            return
        connection = self._opened(self._writing)
        with _transaction(connection):
            for statement in SETTLE:
                connection.execute(statement)
        self._unclean = True
        self._clean()
        self.settled = True

    def key(self, key_id: str) -> WrappedKey | None:
        """A key; None where it is destroyed.

        Raises:
            sqlite3.Error: the file cannot be read.

        """
        number = number_of(key_id)
        found = [] if number is None else self._select(SELECT + "WHERE key_id = ?", number)
        return found[0] if found else None

    def keys_of(self, subject: str) -> list[WrappedKey]:
        """A person's keys, oldest first.

        Raises:
            sqlite3.Error: the file cannot be read.

        """
        person = number_of(subject[: 2 * ID_BYTES])
        found = (
            []
            if person is None
            else self._select(SELECT + "WHERE person = ? ORDER BY number", person)
        )
        return [one for one in found if one.subject == subject]

    def newest_keys(self, count: int) -> list[WrappedKey]:
        """Those that were stored last.

        Raises:
            sqlite3.Error: the file cannot be read.

        """
        return self._select(SELECT + "ORDER BY number DESC LIMIT ?", count)

    def _connect(self) -> bool:
        """Open the file; False where it is of another format or other brokers."""
        with contextlib.ExitStack() as undo:
            path = self._path
            if path is None:
                temporary = Path(tempfile.mkdtemp(prefix="ratchet-user-keys-"))
                undo.callback(shutil.rmtree, temporary, ignore_errors=True)
                path = temporary / "keys.sqlite"
            connection = _connection(path)
            undo.callback(connection.close)
            connection.execute("PRAGMA journal_mode = WAL")
            # A commit may be lost with the machine, never half of one: its offsets are lost with it.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            if _pragma(connection, "user_version") == 0:
                with _transaction(connection):
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute("INSERT INTO about VALUES (?, 0)", (self._origin,))
                    connection.execute(f"PRAGMA user_version = {FORMAT}")
            if _pragma(connection, "user_version") != FORMAT:
                return False
            ((origin, settled),) = connection.execute(
                "SELECT origin, settled FROM about"
            ).fetchall()
            if origin != self._origin:
                return False
            # One that was killed between a key's end and the emptying of the log left both.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            reading = _connection(path)
            reading.execute("SELECT * FROM about").fetchall()
            undo.pop_all()
        if self._path is None:
            shutil.rmtree(path.parent)  # both have it open; it ends with them, however that is
        self._writing, self._reading = connection, reading
        self.settled = bool(settled)
        return True

    def _disconnect(self) -> None:
        with self._reads:
            for connection in (self._reading, self._writing):
                if connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        connection.close()
            self._writing = self._reading = None
        self.settled = self._unclean = False

    def _apply(self, connection: sqlite3.Connection, record: Record, taken: Taken) -> None:
        name = name_of(record.key)
        if name is None:
            log.warning("user_keys.unreadable", offset=record.offset, error="its key is no name")
            return
        if self.settled:
            gone = connection.execute("DELETE FROM keys WHERE key_id = ?", (name.number,))
            self._unclean |= gone.rowcount > 0
        tenant, wrapped = "", None
        if record.value is None:
            taken.destroyed.append((name.subject, name.key_id))
        else:
            tenant, wrapped = content_of(record)
            taken.issued.append((name.subject, name.key_id))
        if wrapped is not None or not self.settled:
            connection.execute(
                "INSERT INTO keys (person, key_id, subject, tenant, wrapped) VALUES (?, ?, ?, ?, ?)",
                (name.person, name.number, name.subject_bytes, tenant, wrapped),
            )

    def _compare(self, record: Record, newest: int) -> None:
        """A reader begins with the newest record that is stored: it must be the same one."""
        same = self._opened(self._writing).execute(
            "SELECT 1 FROM newest WHERE partition = ? AND offset = ? AND stored_ms = ? AND name = ?",
            (record.partition, record.offset, record.timestamp_ms, record.key),
        )
        if not same.fetchall():
            raise TopicReplaced(f"another record at offset {record.offset}, {newest} is stored")

    def _clean(self) -> None:
        """Empty the write-ahead log of what a destroyed key was; tried again where a reader is on it."""
        if self._unclean:
            found = self._opened(self._writing).execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._unclean = bool(found.fetchall()[0][0])

    def _newest(self) -> dict[int, int]:
        found = self._opened(self._writing).execute("SELECT partition, offset FROM newest")
        return dict(found.fetchall())

    def _select(self, statement: str, value: int) -> list[WrappedKey]:
        if not self.settled:
            return []
        # All rows at once: a statement that is not read to its end would keep the log from emptying.
        with self._reads:
            found = self._opened(self._reading).execute(statement, (value,)).fetchall()
        return [
            WrappedKey(f"{number & 0xFFFFFFFFFFFFFFFF:016x}", subject.hex(), tenant, wrapped)
            for number, subject, tenant, wrapped in found
        ]

    @staticmethod
    def _opened(connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise sqlite3.OperationalError("the file of user keys is not open")
        return connection


def _connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False
    )
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchall()[0][0]
