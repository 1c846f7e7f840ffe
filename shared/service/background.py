"""Background tasks of a service: started by name, watched by liveness, ended within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import structlog

log = structlog.get_logger(__name__)

CANCEL_TIMEOUT_S = 5.0
"""How long cancelled tasks may take to end; what takes longer is left to the process's end."""


class BackgroundTasks:
    """Tasks that run as long as the service does."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it is cancelled or ends."""
        self.tasks.append(asyncio.create_task(work, name=name))

    def ended(self) -> str | None:
        """A liveness check: a task that should run for ever has ended."""
        names = [task.get_name() for task in self.tasks if task.done()]
        return f"ended: {', '.join(names)}; the log says why" if names else None

    def cancel(self, *names: str) -> None:
        """Cancel the named tasks, or all."""
        for task in self.tasks:
            if not names or task.get_name() in names:
                task.cancel()

    async def finish(self, timeout_s: float, *, wait_for: Iterable[str] = ()) -> list[Exception]:
        """Let tasks (those in `wait_for`, or all) end for `timeout_s` seconds, then cancel all.

        Returns the errors that tasks ended with; each is logged.
        """
        names = set(wait_for)
        waited = [task for task in self.tasks if not names or task.get_name() in names]
        if waited:
            await asyncio.wait(waited, timeout=timeout_s)
        self.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=CANCEL_TIMEOUT_S)
        errors: list[Exception] = []
        for task in self.tasks:
            if not task.done():
                log.error("task.not_ended", task=task.get_name())
                continue
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Exception):
                log.error("task.failed", task=task.get_name(), error=repr(error))
                errors.append(error)
        return errors
