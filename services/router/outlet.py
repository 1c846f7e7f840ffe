"""The way to a client who may read slowly, or not at all."""

from __future__ import annotations

from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from services.router.vigil import Vigil
from shared.observability.health import Send

GRACE_S = 1.0
"""What one more message may take, however late it is."""


class SlowClient(Exception):
    """The client did not read what it was sent before the request's deadline."""


class Outlet:
    """Sends a client its answer, but not for longer than the request may take.

    A server's `send` waits as long as what went before is not read. `waited_s` is how long that
    was so far: time that is no engine's fault.
    """

    __slots__ = ("_send", "_until", "_vigil", "waited_s")

    def __init__(self, send: Send, until: float, vigil: Vigil) -> None:
        """`until` is the request's deadline in `perf_counter` seconds."""
        self._send = send
        self._vigil = vigil
        self._until = until
        self.waited_s = 0.0

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Send one message.

        Raises:
            SlowClient: it could not leave in time.

        """
        began = perf_counter()
        try:
            with self._vigil.within(max(GRACE_S, self._until - began)):
                await self._send(message)
        except TimeoutError:
            raise SlowClient from None
        finally:
            self.waited_s += perf_counter() - began
