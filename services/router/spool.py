"""A spool on disk between a request and the brokers.

Appending is one write into the page cache: it survives the death of the process, not of the
machine. A shipper sends what is spooled in order and deletes it after the acknowledgement, so a
record may be sent twice after a crash and never not at all.

A spool is a folder of segments, `00000001.spool` and so on, each a row of frames: length and
CRC-32 of the payload (big-endian u32 each), then the payload. `shipped` holds the segment number
and byte offset up to which everything was acknowledged. A frame whose checksum is wrong ends its
segment: it is the torn last write of a killed process.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import structlog

from shared.kafka.log import EventLog, LogUnavailable, NewRecord

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
SHIP_BYTES = 1024 * 1024
"""About how many bytes one round of shipping sends."""
SHIP_TIMEOUT_S = 15.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0

_FRAME = struct.Struct(">II")
_PART = struct.Struct(">HHIi")
_MARK = struct.Struct(">QQ")
_NO_PARTITION = -1


class Spool:
    """Segments in a folder of one process's own. Not for threads."""

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        """Open or make the folder. `limit_bytes` bounds what waits; beyond it appends fail."""
        self._directory = directory
        self._limit = limit_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._mark = os.open(directory / "shipped", os.O_RDWR | os.O_CREAT, 0o600)
        marked = os.pread(self._mark, _MARK.size, 0)
        self._shipped = _MARK.unpack(marked) if len(marked) == _MARK.size else (0, 0)
        existing = self._segments()
        self._segment = (max(existing) if existing else self._shipped[0]) + 1
        self._sizes = {number: self._path(number).stat().st_size for number in existing}
        self._total = sum(self._sizes.values())
        self._writer = self._open_segment()
        self._appended = asyncio.Event()
        if existing:
            self._appended.set()

    @property
    def bytes(self) -> int:
        """Bytes that wait for an acknowledgement, what is acknowledged in a segment included."""
        return self._total

    def append(self, record: NewRecord) -> bool:
        """Keep a record; False where the spool is full or the disk refuses it."""
        payload = _pack(record)
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        if self._total + len(frame) > self._limit:
            return False
        size = self._sizes[self._segment]
        try:
            written = os.write(self._writer, frame)
            if written != len(frame):
                os.ftruncate(self._writer, size)
                return False
        except OSError:
            log.exception("spool.write_failed")
            return False
        self._sizes[self._segment] = size + len(frame)
        self._total += len(frame)
        if self._sizes[self._segment] >= SEGMENT_BYTES:
            self._roll()
        self._appended.set()
        return True

    def close(self) -> None:
        """Close the files; what waits stays on disk for the next process."""
        os.close(self._writer)
        os.close(self._mark)

    def batch(self) -> tuple[list[NewRecord], tuple[int, int]]:
        """The oldest records not yet shipped, and the place behind them for `trim`."""
        records: list[NewRecord] = []
        size = 0
        segment, offset = self._shipped
        for number in sorted(self._sizes):
            if number < segment:
                continue
            start = offset if number == segment else 0
            for record, end in _frames(self._path(number), start, SHIP_BYTES - size):
                records.append(record)
                size += end - start
                start = end
            segment, offset = number, start
            if size >= SHIP_BYTES:
                break
        if not records:
            self._appended.clear()
        return records, (segment, offset)

    def trim(self, place: tuple[int, int]) -> None:
        """Forget everything before `place`: it is acknowledged."""
        self._shipped = place
        os.pwrite(self._mark, _MARK.pack(*place), 0)
        segment, offset = place
        if segment == self._segment and offset == self._sizes[segment] and offset > 0:
            self._roll()
            segment += 1
        for number in [one for one in self._sizes if one < segment]:
            self._path(number).unlink(missing_ok=True)
            self._total -= self._sizes.pop(number)

    async def wait(self) -> None:
        """Wait until there is something to ship."""
        await self._appended.wait()

    def _roll(self) -> None:
        os.close(self._writer)
        self._segment += 1
        self._writer = self._open_segment()

    def _open_segment(self) -> int:
        self._sizes[self._segment] = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC
        return os.open(self._path(self._segment), flags, 0o600)

    def _segments(self) -> list[int]:
        return [int(path.stem) for path in self._directory.glob("*.spool")]

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.spool"


class SpoolShipper:
    """Sends what is spooled, oldest first, for as long as it takes."""

    def __init__(self, spool: Spool, event_log: EventLog, *, gather_s: float = 0.0) -> None:
        """`gather_s` is how long a batch may grow, in seconds: fewer rounds cost less."""
        self._gather_s = gather_s
        self._spool = spool
        self._log = event_log
        self._backoff_s = BACKOFF_FIRST_S

    async def run(self) -> None:
        """Ship until cancelled."""
        while True:
            await self._spool.wait()
            if self._gather_s:
                await asyncio.sleep(self._gather_s)
            if not await self.ship():
                await asyncio.sleep(self._backoff_s)
                self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)

    async def drain(self, timeout_s: float) -> bool:
        """Ship all that waits, for at most `timeout_s` seconds; tells whether all went."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._spool.batch()[0]:
                    if not await self.ship():
                        await asyncio.sleep(BACKOFF_FIRST_S)
        except TimeoutError:
            return False
        return True

    async def ship(self) -> bool:
        """Send one batch and trim it; False where the brokers did not acknowledge it."""
        records, place = self._spool.batch()
        try:
            if records:
                await self._log.append_many(records, timeout_s=SHIP_TIMEOUT_S)
        except LogUnavailable as error:
            log.warning("spool.ship_failed", waiting_bytes=self._spool.bytes, error=str(error))
            return False
        self._spool.trim(place)
        self._backoff_s = BACKOFF_FIRST_S
        return True


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
    with path.open("rb") as file:
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
