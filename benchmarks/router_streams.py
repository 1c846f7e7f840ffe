"""Streams through a proxy: time to first token, gaps between tokens, and how many it holds.

`benchmarks.router` runs it against the stub alone, the bare ASGI proxy and the router, all in one
run. The stub sends an event every PACE_S, so a gap of just that is the best that a proxy can have.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

import orjson

from benchmarks.proxy_load import PATH

PACE_S = 0.1
TOKENS = 30
"""About the tokens of a stream, which is open for four seconds then."""
STREAMS = 100
"""Streams at a time for the times of tokens."""
HELD = 1_000
"""Streams that have to be open at the same moment."""
START_OVER_S = 1.0
"""The streams begin spread over this time, as those of users do."""
TIMEOUT_S = 120.0
GOAL_ADDED_FIRST_MS = 0.5
_TOKEN = re.compile(rb'"content":\s*"[^"]')
_LAST = b"[DONE]"


@dataclass(slots=True)
class StreamTimes:
    """What the streams of one proxy saw, in milliseconds, and how many were open at once."""

    name: str
    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    whole: int = 0
    open: int = 0
    most_open: int = 0


def stream_times(name: str, url: str, count: int) -> StreamTimes:
    """Ask for `count` streams at once, and read all of them to their end."""
    times = StreamTimes(name)
    asyncio.run(asyncio.wait_for(_all(times, url, count), TIMEOUT_S))
    assert times.whole == count, f"{name}: {times.whole} of {count} streams came to their end"
    return times


async def _all(times: StreamTimes, url: str, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(_one(times, url, number, START_OVER_S * number / count))


async def _one(times: StreamTimes, url: str, number: int, after_s: float) -> None:
    await asyncio.sleep(after_s)
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(_request(place.netloc, number))
        asked = last = perf_counter()
        first = True
        while _LAST not in (event := await reader.readuntil(b"\n\n")):
            if not _TOKEN.search(event):
                continue
            now = perf_counter()
            if first:
                first = False
                times.first_ms.append((now - asked) * 1000)
                times.open += 1
                times.most_open = max(times.most_open, times.open)
            else:
                times.gap_ms.append((now - last) * 1000)
            last = now
        times.open -= 1
        times.whole += 1
    finally:
        writer.close()


def _request(host: str, number: int) -> bytes:
    body = orjson.dumps(
        {
            "model": "assistant",
            "user": f"user-{number}",
            "stream": True,
            "messages": [
                {"role": "user", "content": "Where is my parcel? I ordered it last week."}
            ],
        }
    )
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One line of the table: STREAMS streams for the times, HELD for how many were open at once."""

    name: str
    first_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    held: int


def measure_streams(name: str, url: str) -> StreamRow:
    """Warm up, then the times, then as many as are to be held."""
    stream_times(name, url, STREAMS)
    times = stream_times(name, url, STREAMS)
    held = stream_times(name, url, HELD)
    return StreamRow(
        name=name,
        first_ms=statistics.median(times.first_ms),
        gap_p50_ms=statistics.median(times.gap_ms),
        gap_p99_ms=statistics.quantiles(times.gap_ms, n=100)[98],
        held=held.most_open,
    )


def stream_table(rows: Sequence[StreamRow]) -> str:
    """The rows in milliseconds, aligned; the first is the stub alone, against which the others add."""
    alone = rows[0]
    head = (
        f"{f'{STREAMS} streams':22}{'first token':>12}{'added':>9}{'gap p50':>9}{'added':>9}"
        f"{'gap p99':>9}{'added':>9}{'open at once':>14}"
    )
    lines = [
        f"{row.name:22}{row.first_ms:12.2f}{row.first_ms - alone.first_ms:9.2f}"
        f"{row.gap_p50_ms:9.2f}{row.gap_p50_ms - alone.gap_p50_ms:9.2f}"
        f"{row.gap_p99_ms:9.2f}{row.gap_p99_ms - alone.gap_p99_ms:9.2f}"
        f"{f'{row.held} of {HELD}':>14}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def stream_verdicts(rows: Sequence[StreamRow], ours: StreamRow) -> list[tuple[bool, str]]:
    """Our figures against the goals."""
    added = ours.first_ms - rows[0].first_ms
    return [
        (
            added <= GOAL_ADDED_FIRST_MS,
            f"{added:.2f} ms added to a stream's first token (goal {GOAL_ADDED_FIRST_MS} ms)",
        ),
        (ours.held == HELD, f"{ours.held} streams open at once (goal {HELD:,})"),
    ]
