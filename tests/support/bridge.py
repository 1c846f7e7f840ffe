"""`python bridge.py FROM TO`: hands connections on, each end `unix:PATH` or `tcp:PORT` of 127.0.0.1.

Two of them, one on each side of a mounted socket, bring a server of this machine into a container
that has no network. Standard library alone: one of them runs in an image.
"""

from __future__ import annotations

import asyncio
import os
import sys

PART = 65_536
ALL_MAY = 0o666
"""A container's user is not the one who listens here."""
HOST = "127.0.0.1"


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while part := await reader.read(PART):
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        pass  # Either side may go; the other then learns of it below.
    finally:
        writer.close()


async def main(source: str, target: str) -> None:
    there, place = target.split(":", 1)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await (
                asyncio.open_unix_connection(place)
                if there == "unix"
                else asyncio.open_connection(HOST, int(place))
            )
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    here, at = source.split(":", 1)
    if here == "unix":
        server = await asyncio.start_unix_server(meet, at)
        os.chmod(at, ALL_MAY)  # noqa: PTH101 the loop is not to wait for a path's machinery
    else:
        server = await asyncio.start_server(meet, HOST, int(at))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
