"""Pair index: what the schedule knows of each pair, in an SQLite file that outlives the process.

With which fresh votes the newest reward model agrees is there, too: scoring them anew takes an hour.

The file is disposable: one that is lost, damaged, or of another release, other brokers or rules is made
anew from `preferences.v1`. It holds no texts; who rated a pair leaves it, and its journal, with the pair.
"""

# pyright: strict
from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import orjson
import structlog

from services.training.errors import DiskFull, PairIndexDamaged
from services.training.reward_freshness import KnownVerdicts, VotePlace
from services.training.settings import TrainingSettings
from shared.kafka.log import Positions, Record, TopicReplaced
from shared.revision import VERSION

log = structlog.get_logger(__name__)

FILE: Final = "pairs.sqlite"
FORMAT: Final = 3
"""Kept in `user_version`; a file of another format is made anew."""
CACHE_KIB: Final = 8 * 1024
"""Memory for pages of the file."""

_SCHEMA: Final = (
    "CREATE TABLE about (origin TEXT NOT NULL)",
    "CREATE TABLE newest (topic TEXT, partition INTEGER, offset INTEGER NOT NULL,"
    " stored_ms INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (topic, partition))",
    "CREATE TABLE pairs (pair_id TEXT PRIMARY KEY, pair BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE verdicts (reward_model TEXT NOT NULL, place TEXT, offset INTEGER,"
    " agreed INTEGER NOT NULL, PRIMARY KEY (place, offset)) WITHOUT ROWID",
)


class CountedPair(NamedTuple):
    """What decides a pair's side, without its texts."""

    prompt_digest: bytes
    prompt_rank: float
    raters: tuple[str, ...]
    panel: str
    category: str
    place: str
    offset: int
    judges: bool
    """Whether it can teach the judge by itself: neither a single answer nor a machine's pair can."""
    chars: int = 0
    """Of the better answer."""
    label: bool | None = None
    """Of a single answer: two of them, good and bad, teach a judge that has no vote."""
    day: int = 0
    """Ordinal of the UTC date on which it was made."""
    drawn: bool = True
    """Whether no reward model chose its answers as hard to tell apart."""


class _Newest(NamedTuple):
    """The newest record of a partition that is stored, which tells the topic."""

    offset: int
    stored_ms: int
    key: str


class PairIndex:
    """See the module. One thread at a time uses it; it may be closed under that one."""

    def __init__(self, folder: Path | None = None, origin: str = "") -> None:
        """Open the folder's file, or make a new one; without a folder a temporary one.

        Args:
            folder: This process's alone.
            origin: Names all that decides what is stored, brokers and rules.

        Raises:
            DiskFull: it can neither be opened nor made.

        """
        self._path = folder / FILE if folder is not None else None
        self._origin = origin
        self._lock = threading.RLock()
        self._newest: dict[tuple[str, int], _Newest] = {}
        self._verdicts = KnownVerdicts()
        self._connection = self._opened()
        weakref.finalize(self, self._connection.close)

    @classmethod
    def of(cls, settings: TrainingSettings) -> PairIndex:
        """The index of a service, in its data directory; errors are those of `PairIndex`."""
        rules = settings.rules.model_dump(mode="json")
        whose = (VERSION, settings.kafka_bootstrap, settings.model, settings.method, rules)
        return cls(settings.data_dir.resolve() / "training", orjson.dumps(whose).decode())

    def __len__(self) -> int:
        with self._trouble():
            ((count,),) = self._connection.execute("SELECT count(*) FROM pairs").fetchall()
        return int(count)

    def positions(self) -> Positions:
        """Where reading goes on: at the newest records that are stored."""
        return {place: newest.offset for place, newest in self._newest.items()}

    def takes(self, record: Record) -> bool:
        """Note that a record is read; False where it was before.

        Raises:
            TopicReplaced: it is before what is stored, or another one stood at its place.

        """
        place, found = (
            (record.topic, record.partition),
            _Newest(record.offset, record.timestamp_ms, record.key),
        )
        known = self._newest.get(place)
        if known is not None and found.offset <= known.offset:
            if found != known:
                raise TopicReplaced(f"another record at offset {found.offset} of {record.topic}")
            return False
        self._newest[place] = found
        return True

    def put(self, pair_id: str, pair: CountedPair) -> None:
        """Store a pair in place of the older one of its id.

        Raises:
            DiskFull: there is no room.
            PairIndexDamaged: the file cannot be read.

        """
        fields = pair._replace(prompt_digest=b"")
        stored = orjson.dumps([pair.prompt_digest.hex(), *fields[1:]])
        with self._trouble():
            self._connection.execute(
                "INSERT OR REPLACE INTO pairs VALUES (?, ?)", (pair_id, stored)
            )

    def pop(self, pair_id: str) -> bool:
        """Take a pair out; tells whether it was there. Errors are those of `put`."""
        with self._trouble():
            gone = self._connection.execute("DELETE FROM pairs WHERE pair_id = ?", (pair_id,))
        return gone.rowcount > 0

    def pairs(self) -> Iterator[CountedPair]:
        """All pairs, in the order of their ids. Errors are those of `put`."""
        with self._trouble():
            for (stored,) in self._connection.execute("SELECT pair FROM pairs ORDER BY pair_id"):
                yield _pair_of(stored)

    def stands(self, pair_id: str, vote: VotePlace) -> bool:
        """Whether the pair of this id is the one at this place. Errors are those of `put`."""
        with self._trouble():
            found = self._connection.execute(
                "SELECT pair FROM pairs WHERE pair_id = ?", (pair_id,)
            ).fetchone()
        if found is None:
            return False
        pair = _pair_of(found[0])
        return (pair.place, pair.offset) == vote

    def verdicts(self) -> KnownVerdicts:
        """With which fresh votes a reward model agrees, as they are kept."""
        return self._verdicts

    def keep_verdicts(self, known: KnownVerdicts) -> None:
        """Keep these, and no others. Errors are those of `put`."""
        if known == self._verdicts:
            return
        with self._trouble():
            self._connection.execute("DELETE FROM verdicts")
            self._connection.executemany(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?)",
                [(known.reward_model, *vote, said) for vote, said in known.agreed.items()],
            )
        self._verdicts = known

    def commit(self) -> None:
        """Put on disk what was read, and begin anew. Errors are those of `put`."""
        with self._trouble():
            self._connection.executemany(
                "INSERT OR REPLACE INTO newest VALUES (?, ?, ?, ?, ?)",
                [(*place, *newest) for place, newest in self._newest.items()],
            )
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")

    def reset(self) -> None:
        """Forget all pairs: the topic brings them again. Errors are those of `put`."""
        self._newest.clear()
        with self._trouble():
            self._connection.execute("DELETE FROM pairs")
            self._connection.execute("DELETE FROM newest")
            self._connection.execute("DELETE FROM verdicts")
        self._verdicts = KnownVerdicts()

    def close(self) -> None:
        """Let go of the file; what was not committed is read again.

        A thread may still be in the file, as nothing cancels it: SQLite would crash under it.
        """
        with self._lock:
            self._connection.close()

    def _opened(self) -> sqlite3.Connection:
        try:
            found = self._connected()
        except PairIndexDamaged as error:
            log.warning("pair_index.made_anew", error=str(error))
            found = None
        if found is None:
            self._delete()
            found = self._connected()
        assert found is not None, "a new file fits"
        return found

    def _connected(self) -> sqlite3.Connection | None:
        """The file, in a transaction; None where it is of another format or origin."""
        with self._trouble(), contextlib.ExitStack() as undo:
            connection = sqlite3.connect(
                self._path or "", isolation_level=None, check_same_thread=False
            )
            undo.callback(connection.close)
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            ((known,),) = connection.execute("PRAGMA user_version").fetchall()
            if known == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO about VALUES (?)", (self._origin,))
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            elif known != FORMAT or self._origin_of(connection) != self._origin:
                return None
            self._newest = {
                (topic, partition): _Newest(*newest)
                for topic, partition, *newest in connection.execute("SELECT * FROM newest")
            }
            rows = connection.execute("SELECT * FROM verdicts").fetchall()
            agreed = {(place, offset): bool(said) for _, place, offset, said in rows}
            self._verdicts = KnownVerdicts(rows[0][0] if rows else "", agreed)
            undo.pop_all()
        return connection

    @staticmethod
    def _origin_of(connection: sqlite3.Connection) -> str:
        ((origin,),) = connection.execute("SELECT origin FROM about").fetchall()
        return str(origin)

    def _delete(self) -> None:
        if self._path is not None:
            for path in (Path(f"{self._path}-journal"), self._path):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _trouble(self) -> Generator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.ProgrammingError:
            raise  # it was closed meanwhile, which damages nothing
        except sqlite3.OperationalError as error:
            raise DiskFull(
                f"disk: no room for the pairs that are counted ({error}); free some below "
                f"{self._path.parent if self._path else 'TMPDIR'}, or let it be written"
            ) from error
        except sqlite3.DatabaseError as error:
            self._delete()
            raise PairIndexDamaged(f"{self._path}: {error}; it is made anew") from error


def _pair_of(stored: bytes) -> CountedPair:
    digest, rank, raters, *rest = orjson.loads(stored)
    return CountedPair(bytes.fromhex(digest), rank, tuple(raters), *rest)
