"""Open-loop load: requests go out on time, and a stall of the server is in the latencies."""

from __future__ import annotations

import asyncio
import contextlib

from benchmarks.fixed_rate import Target, at_fixed_rate


async def test_a_stall_is_in_the_latencies_of_all_that_were_due_in_it() -> None:
    stalled_s, rate = 0.5, 200
    stall = asyncio.Event()
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(EOFError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                served.append(await reader.readexactly(length))
                if len(served) == rate:
                    asyncio.get_running_loop().call_later(stalled_s, stall.set)
                if len(served) >= rate:
                    await stall.wait()
                writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        target = Target("127.0.0.1", port, "/", lambda number: str(number).encode())
        found = await at_fixed_rate(target, rate=rate, seconds=1.5)
    assert (found.failed, len(found.seconds)) == (0, 300)
    assert len(set(served)) == len(served) == 350
    # A third of the requests were due in the stall, which a client that waits would not have sent.
    assert found.percentile_ms(99) > stalled_s * 800
    assert sum(latency > stalled_s / 10 for latency in found.seconds) > rate * stalled_s / 2


async def test_another_status_is_a_failure() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(EOFError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], "/", lambda _: b"")
        found = await at_fixed_rate(target, rate=100, seconds=0.2)
    assert (found.failed, found.seconds) == (20, [])
