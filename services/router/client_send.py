"""ASGI send with a write deadline and backpressure accounting."""

from __future__ import annotations

from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from services.router.watchdog import Watchdog
from shared.http.asgi import Send

GRACE_S = 1.0
"""What one more message may take, however late it is."""


class SlowClient(Exception):
    """The client did not read what it was sent before the attempt's deadline."""


class ClientSend:
    """ASGI `send` that ends at `until`: the running attempt's deadline, in `perf_counter` seconds.

    A server's `send` waits while the client has not read what was sent before (backpressure).
    `waited_s` sums those waits in seconds, so that the engine is not blamed for them.
    """

    __slots__ = ("_send", "_watchdog", "until", "waited_s")

    def __init__(self, send: Send, watchdog: Watchdog) -> None:
        self._send = send
        self._watchdog = watchdog
        self.until = 0.0
        self.waited_s = 0.0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send one message.

        Raises:
            SlowClient: it could not leave in time.

        """
        await self.all(message)

    async def all(self, *messages: MutableMapping[str, Any]) -> None:
        """Send several messages by one deadline. Raises as a single one does."""
        began = perf_counter()
        try:
            with self._watchdog.within(max(GRACE_S, self.until - began)):
                for message in messages:
                    await self._send(message)
        except TimeoutError:
            raise SlowClient from None
        finally:
            self.waited_s += perf_counter() - began
