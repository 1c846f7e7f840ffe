"""A producer whose second record has a header name that is not UTF-8, as other languages' can.

`python -m tests.support.odd_headers BOOTSTRAP TOPIC`, in an environment with
AIOKAFKA_NO_EXTENSIONS=1: only the client's plain Python can be made to write such a name.
"""

# pyright: basic
from __future__ import annotations

import asyncio
import sys

from aiokafka import AIOKafkaProducer

from shared.contracts.events.quality import Tick
from shared.testing.clock import START

TICK = Tick(at=START, partition=0).to_json()


class OddName(str):
    """A text that encodes as two bytes that no UTF-8 has."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        """See OddName."""
        return b"\xff\xfe"


async def main(bootstrap: str, topic: str) -> None:
    """Append to partition 0, each in a batch of its own: before, (odd), behind."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for name in ("before", OddName("odd"), "behind"):
            headers = [("ce_type", Tick.ce_type.encode()), ("ce_id", name[:].encode())]
            if isinstance(name, OddName):
                headers.append((name, b""))
            await producer.send_and_wait(topic, TICK, partition=0, headers=headers)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
