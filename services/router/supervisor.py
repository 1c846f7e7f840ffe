"""Process supervisor: several router processes on one port, restarted with back-off and ended together.

Every process is a whole router with an identity, a spool and a scrape target of its own; the kernel
spreads connections over them (SO_REUSEPORT). The supervisor serves nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from time import monotonic

import structlog

from shared.backoff import Backoff

log = structlog.get_logger(__name__)

RESTART_FIRST_S, RESTART_MAX_S = 0.5, 30.0
STEADY_S = 60.0
"""A process that ran so long starts the back-off anew when it ends."""
MAX_RESTARTS = 8
"""Restarts in a row of one process that never ran for STEADY_S; then the supervisor gives up."""


class ProcessSupervisor:
    """Keeps `count` processes running, each started by `command` and its number, until told to stop.

    Each has a pipe as standard input, whose end tells it that the supervisor is gone.
    """

    def __init__(self, command: Sequence[str], count: int, *, stop_timeout_s: float) -> None:
        """`stop_timeout_s` is how long a process may take to end after SIGTERM, in seconds."""
        self._command = command
        self._count = count
        self._stop_timeout_s = stop_timeout_s
        self._gave_up = False

    async def run(self, stop: asyncio.Event) -> int:
        """Run until `stop` is set, or one process cannot be kept running; returns the exit status."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._keep(number, stop))
        return 1 if self._gave_up else 0

    async def _keep(self, number: int, stop: asyncio.Event) -> None:
        backoff = Backoff(RESTART_FIRST_S, RESTART_MAX_S)
        restarts = 0
        while not stop.is_set():
            started = monotonic()
            await self._run_one(number, stop)
            if stop.is_set():
                return
            if monotonic() - started >= STEADY_S:
                backoff.reset()
                restarts = 0
            if restarts == MAX_RESTARTS:
                log.error("process.given_up", process=number, restarts=restarts)
                self._gave_up = True
                stop.set()
                return
            restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), backoff.next_s())

    async def _run_one(self, number: int, stop: asyncio.Event) -> None:
        """Run one process until it ends. One that the system has no room for has ended at once."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, str(number), stdin=asyncio.subprocess.PIPE
            )
        except OSError:
            log.exception("process.not_started", process=number)
            return
        log.info("process.started", process=number, pid=process.pid)
        await self._until_ended(process, stop)
        if not stop.is_set():
            log.error("process.ended", process=number, pid=process.pid, status=process.returncode)

    async def _until_ended(self, process: asyncio.subprocess.Process, stop: asyncio.Event) -> None:
        """Wait until a process ends, or end it once `stop` is set: by SIGTERM, then by SIGKILL."""
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait((ended,), timeout=self._stop_timeout_s)
        if not ended.done():
            log.error("process.killed", pid=process.pid, timeout_s=self._stop_timeout_s)
            process.kill()
        await ended


def stop_at_end_of_input(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: the supervisor that holds its other end is gone."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, ended)
