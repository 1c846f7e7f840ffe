"""A write-ahead spool on disk between a request and the brokers.

Appending is one write into the page cache: it survives the death of the process, not of the
machine. A shipper (`spool_shipper`) sends what is spooled in order and deletes it after the acknowledgement, so a
record may be sent twice after a crash and never not at all.

A spool is a folder of segments, `00000001.spool` and so on, each a row of frames: length and
CRC-32 of the payload (big-endian u32 each), then the payload. `shipped` holds the segment number
and byte offset up to which everything was acknowledged. A frame whose checksum is wrong ends its
segment: it is the torn last write of a killed process.

A disk that refuses (full, no inodes, read-only, gone) stops nothing: records wait in memory, a
few megabytes of them, and the disk is tried again. What fits neither is refused and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import structlog

from services.router.recent_records import RecentRecords
from shared.kafka.log import PER_TURN, NewRecord

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
MEMORY_BYTES = 8 * 1024 * 1024
"""What waits in memory where the disk refuses it."""
DISK_RETRY_S = 1.0
"""How long a disk that refused is left alone."""
SHIP_BYTES = 1024 * 1024
"""About how many bytes one round of shipping sends."""
READ_BYTES = 256 * 1024
"""Buffer of a segment that is read: one system call for a hundred records and more."""
RECENT_BYTES = 4 * SHIP_BYTES
"""Of records on disk that are kept in memory too, so that shipping need not read them again."""

_FRAME = struct.Struct(">II")
_PART = struct.Struct(">HHIi")
_MARK = struct.Struct(">QQ")
_NO_PARTITION = -1


class Place(NamedTuple):
    """How far a batch reaches: into the segments, and how many of the records in memory."""

    segment: int
    offset: int
    in_memory: int
    inherited: int = 0
    """Records in the batch that an earlier process left."""


class Spool:
    """Segments in a folder of one process's own. Not for threads."""

    def __init__(
        self, directory: Path, *, limit_bytes: int, memory_bytes: int | None = None
    ) -> None:
        """Open or make the folder. `limit_bytes` bounds what waits; beyond it appends fail.

        `memory_bytes` bounds what waits in memory where the disk refuses it; MEMORY_BYTES by default.
        """
        self._directory = directory
        self._limit = limit_bytes
        self._memory_limit = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._memory: deque[tuple[NewRecord, int]] = deque()
        self._memory_bytes = 0
        self._recent = RecentRecords(min(RECENT_BYTES, self._memory_limit))
        self._sizes: dict[int, int] = {}
        self._total = 0
        self._shipped = (0, 0)
        self._segment = self._first = 0
        self.recovered = 0
        """Records of an earlier process that were shipped."""
        self._mark = self._writer = -1
        self._torn = False
        self._retry_at = 0.0
        self.trouble = ""
        """Why the disk refused last; empty while it takes what it is given."""
        self._appended = asyncio.Event()
        try:
            self._open()
        except OSError as error:
            self._disk_refused(error)
        if self._sizes:
            self._appended.set()

    @property
    def bytes(self) -> int:
        """Bytes that wait for an acknowledgement, what is acknowledged in a segment included."""
        return self._total + self._memory_bytes

    @property
    def end(self) -> Place:
        """The place behind what is on the disk, for `trim`."""
        return Place(self._segment, self._sizes.get(self._segment, 0), 0)

    @property
    def empty(self) -> bool:
        """True once a batch found nothing, and nothing was appended since."""
        return not self._appended.is_set()

    def append(self, record: NewRecord) -> bool:
        """Keep a record; False where the spool is full, or disk and memory refuse it."""
        payload = _pack(record)
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        if self.bytes + len(frame) > self._limit:
            return False
        if not self._write(frame, record) and not self._hold(record, len(frame)):
            return False
        self._appended.set()
        return True

    def close(self) -> None:
        """Close the files; what waits on disk stays there for the next process."""
        for descriptor in (self._writer, self._mark):
            if descriptor >= 0:
                os.close(descriptor)
        self._writer = self._mark = -1
        if self._memory:
            log.error("spool.memory_lost", records=len(self._memory), bytes=self._memory_bytes)

    def batch(self) -> tuple[list[NewRecord], Place]:
        """The oldest records not yet shipped, and the place behind them for `trim`.

        Raises:
            OSError: a segment cannot be read now.

        """
        return next(found for found in self._gathering() if found is not None)

    async def next_batch(self) -> tuple[list[NewRecord], Place]:
        """As `batch`; other tasks get their turn after each PER_TURN records.

        Raises:
            OSError: a segment cannot be read now.

        """
        for found in self._gathering():
            if found is not None:
                return found
            await asyncio.sleep(0)
        raise AssertionError("the batch comes last")

    def _gathering(self) -> Generator[tuple[list[NewRecord], Place] | None]:
        """The batch, last; None where others may have their turn, and may append."""
        records: list[NewRecord] = []
        size = 0
        for record, length in tuple(self._memory):
            if size >= SHIP_BYTES:
                break
            records.append(record)
            size += length
            if len(records) % PER_TURN == 0:
                yield None
        in_memory = len(records)
        inherited = 0
        segment, offset = self._shipped
        for number in sorted(self._sizes):
            if number < segment:
                continue
            start = offset if number == segment else 0
            try:
                for record, end in self._records(number, start, SHIP_BYTES - size):
                    records.append(record)
                    inherited += number < self._first
                    size += end - start
                    start = end
                    if len(records) % PER_TURN == 0:
                        yield None
            except FileNotFoundError:
                # Deleted by someone else; the writer's own is then written to in vain.
                log.warning("spool.segment_missing", segment=number, bytes=self._sizes[number])
                self._torn = self._torn or number == self._segment
                start = self._sizes[number]
            segment, offset = number, start
            if size >= SHIP_BYTES:
                break
        if not records:
            self._appended.clear()
        yield records, Place(segment, offset, in_memory, inherited)

    def trim(self, place: Place) -> None:
        """Forget everything before `place`: it is acknowledged.

        A disk that refuses to note it leaves the records to be sent again after a restart.
        """
        for _ in range(place.in_memory):
            self._memory_bytes -= self._memory.popleft()[1]
        self.recovered += place.inherited
        # The folder may have been opened since, with a mark that is further on.
        segment, offset = self._shipped = max(self._shipped, place[:2])
        try:
            if self._mark >= 0:
                os.pwrite(self._mark, _MARK.pack(*self._shipped), 0)
            self._delete_before(segment)
            if segment == self._segment and offset == self._sizes.get(segment) and offset > 0:
                self._roll()
                self._delete_before(self._segment)
        except OSError as error:
            self._disk_refused(error)

    async def wait(self) -> None:
        """Wait until there is something to ship."""
        await self._appended.wait()

    def _records(self, number: int, start: int, limit: int) -> Iterator[tuple[NewRecord, int]]:
        """Records of a segment from `start`, each with its end: from memory, the rest from disk."""
        path, end = self._path(number), start
        while end - start < limit and (recent := self._recent.take((number, end))):
            yield recent
            end = recent[1]
        if end - start < limit and end < self._sizes[number]:
            self._recent.clear()
            yield from _frames(path, end, limit - (end - start))
        elif not path.exists():
            raise FileNotFoundError(path)

    def _write(self, frame: bytes, record: NewRecord) -> bool:
        """Write a record's frame to the current segment; False where the disk refuses it."""
        if self.trouble and time.monotonic() < self._retry_at:
            return False
        try:
            if self._writer < 0:
                self._open()
            if self._torn:
                self._roll()
            size = self._sizes[self._segment]
            if os.write(self._writer, frame) != len(frame):
                # What stands behind a torn frame is never read, so it goes or the segment ends.
                self._torn = True
                os.ftruncate(self._writer, size)
                self._torn = False
                raise OSError("the disk took a part of a record only")
        except OSError as error:
            self._disk_refused(error)
            return False
        self._sizes[self._segment] = end = size + len(frame)
        self._recent.add((self._segment, size), record, end)
        self._total += len(frame)
        if self.trouble:
            log.info("spool.disk_recovered", trouble=self.trouble)
            self.trouble = ""
        if self._sizes[self._segment] >= SEGMENT_BYTES:
            try:
                self._roll()
            except OSError as error:
                self._disk_refused(error)
        return True

    def _hold(self, record: NewRecord, size: int) -> bool:
        if self._memory_bytes + size > self._memory_limit:
            return False
        self._memory.append((record, size))
        self._memory_bytes += size
        return True

    def _disk_refused(self, error: OSError) -> None:
        """Say so once an outage, and leave the disk alone for a while."""
        if not self.trouble:
            log.error("spool.disk_refused", directory=str(self._directory), error=str(error))
        self.trouble = str(error)
        self._retry_at = time.monotonic() + DISK_RETRY_S

    def _open(self) -> None:
        """Open the folder; after an OSError nothing is open and it can be tried again."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo:
            mark = os.open(self._directory / "shipped", os.O_RDWR | os.O_CREAT, 0o600)
            undo.callback(os.close, mark)
            marked = os.pread(mark, _MARK.size, 0)
            shipped = _MARK.unpack(marked) if len(marked) == _MARK.size else (0, 0)
            os.pwrite(mark, _MARK.pack(*shipped), 0)  # its room is taken before the disk is full
            sizes = {
                int(path.stem): path.stat().st_size for path in self._directory.glob("*.spool")
            }
            number = max((*sizes, shipped[0])) + 1
            self._writer = self._open_segment(number)
            undo.pop_all()
        self._mark, self._shipped = mark, shipped
        self._segment = self._first = number
        self._sizes = {**sizes, number: 0}
        self._total = sum(sizes.values())

    def _roll(self) -> None:
        """Go on to the next segment, which is opened before this one's descriptor is closed.

        The other way round, where the next file cannot be opened, the descriptor's number is given
        to the next socket, and the next frame, a user's prompt, is written to that connection.
        """
        following = self._open_segment(self._segment + 1)
        previous, self._writer = self._writer, following
        self._segment += 1
        self._sizes[self._segment] = 0
        self._torn = False
        os.close(previous)

    def _delete_before(self, segment: int) -> None:
        for number in [one for one in self._sizes if one < segment]:
            self._path(number).unlink(missing_ok=True)
            self._total -= self._sizes.pop(number)

    def _open_segment(self, number: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC
        return os.open(self._path(number), flags, 0o600)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.spool"


def _pack(record: NewRecord) -> bytes:
    topic, key = record.topic.encode(), record.key.encode()
    headers = orjson.dumps([(name, value.decode()) for name, value in record.headers])
    partition = _NO_PARTITION if record.partition is None else record.partition
    fixed = _PART.pack(len(topic), len(key), len(headers), partition)
    return b"".join((fixed, topic, key, headers, record.value or b""))


def _unpack(payload: bytes) -> NewRecord:
    topic_size, key_size, headers_size, partition = _PART.unpack_from(payload)
    key_at = _PART.size + topic_size
    headers_at = key_at + key_size
    value_at = headers_at + headers_size
    headers = orjson.loads(payload[headers_at:value_at])
    return NewRecord(
        topic=payload[_PART.size : key_at].decode(),
        key=payload[key_at:headers_at].decode(),
        value=payload[value_at:],
        headers=tuple((name, value.encode()) for name, value in headers),
        partition=None if partition == _NO_PARTITION else partition,
    )


def _frames(path: Path, start: int, limit: int) -> Iterator[tuple[NewRecord, int]]:
    """Whole frames from `start`, about `limit` bytes of them, each with the offset behind it."""
    if limit <= 0:
        return
    with path.open("rb", buffering=READ_BYTES) as file:
        file.seek(start)
        end = start
        while end - start < limit:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, checksum = _FRAME.unpack(head)
            payload = file.read(length)
            if len(payload) < length or zlib.crc32(payload) != checksum:
                log.warning("spool.torn_frame", segment=path.name, offset=end)
                return
            end += _FRAME.size + length
            yield _unpack(payload), end
