"""Row database: RocksDB below the rows of a worker's partitions, opened, bounded and rebuilt.

It has no write-ahead log of its own: the changelog is one. A batch and its position on the changelog
are one atomic write, so whatever a kill leaves on disk is a state that the changelog can be applied
to from that position on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

import structlog
from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from services.aggregator.errors import StateUnusable

log = structlog.get_logger(__name__)

MIB = 1024 * 1024
WRITE_BUFFER_BYTES = 32 * MIB
"""What is in memory before it goes to disk, twice at most; a killed worker reads as much again from
the changelog."""
BLOB_BYTES = 256
"""Values from this size on are kept apart from their keys, so that compaction does not copy them."""
FIRST_LEVEL_BYTES = 32 * MIB
FIRST_LEVEL_FILES = 8
"""A write buffer leaves some 3 MiB of keys. Each time so many of them are merged into the first level,
all of it is written anew, as traces are in no order: it is as large as they are together, not more."""
GARBAGE_LIMIT, GARBAGE_LEFT = 0.5, 0.3
"""Share of the values' bytes that no key leads to: from the first on, compaction also moves values until
the second is left."""
WRITES_BETWEEN_LOOKS = 256
OPEN_FILES = 256
BLOCK_BYTES = 16 * 1024
BLOOM_BITS = 10
MEMORY_BLOOM_SHARE = 0.02
"""Of a write buffer. Most events look up a trace for the first time, and a filter says in a quarter of
the time of a search that the buffer does not have it."""
WORKERS_PER_DIRECTORY = 64
REBUILD = "rebuild"
"""File in a state directory that is to be emptied when it is opened next."""
_DAMAGED = ("Corruption", "No such file")


class RowDatabase:
    """One worker's state on disk: the first directory below `root` that no other worker holds.

    Raises:
        StateUnusable: it cannot be opened, or from any method, read or written.
    """

    def __init__(self, root: Path, *, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self.path, self._lock = _claim(root)
        try:
            self._db = self._restored()
        except Exception as error:
            self._lock.close()
            raise StateUnusable(self.path, error) from error
        self._collecting = False
        self._writes = 0
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # pyright: ignore[reportAttributeAccessIssue] a property

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        try:
            return self._db.get(key)
        except Exception as error:
            raise self._failure(error) from error

    def scan(self, start: bytes, end: bytes) -> Iterator[bytes]:
        """Keys from `start` on, before `end`, as they are now."""
        for key, _ in self.items(start, end):
            yield key

    def items(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys from `start` on, before `end`, with their values, as they are now."""
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        try:
            # The database's type allows other keys; in raw mode all are bytes.
            items = cast(
                "Iterator[tuple[bytes, bytes]]", self._db.items(from_key=start, read_opt=options)
            )
            yield from items
        except Exception as error:
            raise self._failure(error) from error

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch, whole or not at all."""
        try:
            self._db.write(batch, self._unlogged)
            self._writes += 1
            if self._writes % WRITES_BETWEEN_LOOKS == 0:
                self._collect()
        except Exception as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Put on disk what is in memory; without it a kill undoes what the changelog does not hold."""
        try:
            self._db.flush()
        except Exception as error:
            raise self._failure(error) from error

    def disk_bytes(self) -> int:
        """Bytes of its files."""
        held = 0
        for entry in os.scandir(self.path):
            with suppress(FileNotFoundError):  # RocksDB deletes what it has merged
                held += entry.stat().st_size
        return held

    def close(self) -> None:
        """Put on disk what is in memory, and let go of the directory."""
        try:
            self._db.close()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            del self._db  # RocksDB lets go of its own lock even where it could not write
            self._lock.close()

    def _collect(self) -> None:
        """Let compaction move values while too much of their files is garbage, and no longer.

        Rows leave in the order in which they came, so that files of values become empty by themselves; moving
        what is alive in them would write a growing history again and again. A tenant's budget or a withdrawn
        text leaves holes instead.
        """
        held = self._db.property_int_value("rocksdb.live-blob-file-size") or 0
        garbage = self._db.property_int_value("rocksdb.live-blob-file-garbage-size") or 0
        collecting = garbage > held * (GARBAGE_LEFT if self._collecting else GARBAGE_LIMIT)
        if collecting != self._collecting:
            self._db.set_options({"blob_garbage_collection_age_cutoff": str(float(collecting))})
            self._collecting = collecting

    def _restored(self) -> Rdict:
        """The database as it is, or a new one where it is damaged."""
        if (self.path / REBUILD).exists():
            self._empty("damaged")
        try:
            return self._open()
        except Exception as error:
            if not any(sign in str(error) for sign in _DAMAGED):
                raise
            self._empty(str(error))
            return self._open()

    def _open(self) -> Rdict:
        tables = BlockBasedOptions()
        tables.set_block_cache(Cache(self._cache_bytes))
        tables.set_cache_index_and_filter_blocks(True)
        tables.set_bloom_filter(BLOOM_BITS, False)
        # One filter a file outgrows a shard of the cache (1 MiB of 64) from 430,000 rows on, and is then
        # read again for each row that is looked up: 200 µs an event.
        tables.set_partition_filters(True)
        tables.set_index_type(BlockBasedIndexType.two_level_index_search())
        tables.set_block_size(BLOCK_BYTES)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(tables)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(2)
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(MEMORY_BLOOM_SHARE)
        options.set_max_open_files(OPEN_FILES)
        options.set_max_background_jobs(2)
        options.set_max_bytes_for_level_base(FIRST_LEVEL_BYTES)
        options.set_level_zero_file_num_compaction_trigger(FIRST_LEVEL_FILES)
        options.set_enable_blob_files(True)
        options.set_min_blob_size(BLOB_BYTES)
        options.set_blob_compression_type(DBCompressionType.lz4())
        options.set_enable_blob_gc(True)
        options.set_blob_gc_age_cutoff(0.0)  # none; see _collect
        options.set_blob_gc_force_threshold(GARBAGE_LEFT)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(MIB)
        return Rdict(str(self.path), options=options)

    def _empty(self, reason: str) -> None:
        log.warning("state.emptied", path=str(self.path), reason=reason)
        shutil.rmtree(self.path)
        self.path.mkdir()

    def _failure(self, error: Exception) -> StateUnusable:
        if any(sign in str(error) for sign in _DAMAGED):
            (self.path / REBUILD).touch()
        return StateUnusable(self.path, error)


def _claim(root: Path) -> tuple[Path, TextIO]:
    """The first numbered directory below `root` that no other process holds, and its lock."""
    for number in range(WORKERS_PER_DIRECTORY):
        path = root / f"worker-{number}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (root / f"worker-{number}.lock").open("w", encoding="ascii")
        except OSError as error:
            raise StateUnusable(root, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return path, lock
    raise StateUnusable(root, f"{WORKERS_PER_DIRECTORY} workers hold it; give each its own")
