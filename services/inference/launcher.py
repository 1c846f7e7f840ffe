"""Engine launcher: starts vLLM, checks its health, restarts it; or watches an external one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.inference import guard
from services.inference.drain import EngineDrain
from services.inference.drain_middleware import DRAIN_MARKER
from services.inference.errors import PortTaken
from services.inference.metrics import InferenceMetrics
from shared.backoff import Backoff
from shared.clock import Clock

log = structlog.get_logger(__name__)

POLL_S = 1.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
STEADY_S = 120.0
"""An engine that was healthy for so long starts the back-off anew."""
STOP_TIMEOUT_S = guard.TERM_GRACE_S + guard.KILL_LIMIT_S + 5.0


@dataclass
class EngineState:
    """State of the engine, for the agent, the API and readiness."""

    ready: bool = False
    generation: int = 0
    reason: str = "not started yet"


@dataclass(frozen=True)
class LaunchTimings:
    """Seconds: for the first healthy answer, and without one before a restart."""

    start_timeout_s: float
    unhealthy_after_s: float
    poll_s: float = POLL_S
    backoff_first_s: float = BACKOFF_FIRST_S
    backoff_max_s: float = BACKOFF_MAX_S


def restart_pause_s(backoff: Backoff, lived_s: float) -> float:
    """Seconds to wait before the next start of an engine that lived for `lived_s` seconds."""
    if lived_s >= STEADY_S:
        backoff.reset()
    return backoff.next_s()


def next_generation(path: Path) -> int:
    """The number of this start: one more than the last, also across restarts of the service."""
    try:
        last = int(path.read_text())
    except (OSError, ValueError):
        last = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{last + 1}\n")
    fresh.replace(path)
    return last + 1


class Launcher:
    """Supervisor of vLLM: a child that cannot outlive the service and is restarted when it ends."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        *,
        address: tuple[str, int],
        healthy: Callable[[], Awaitable[bool]],
        answers: Callable[[], Awaitable[bool]],
        changed: Callable[[], None],
        generations: Path,
        policy: LaunchTimings,
        clock: Clock,
        metrics: InferenceMetrics,
        drain: EngineDrain,
        log_path: Path | None = None,
    ) -> None:
        """`healthy` asks the engine, `answers` for a first token; `changed` hears of each `state`.

        `generations` is the file in which starts are counted.
        """
        self.state = EngineState()
        self._command = command
        self._environment = environment
        self._address = address
        self._healthy = healthy
        self._answers = answers
        self._changed = changed
        self._generations = generations
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._drain = drain
        self._log_path = log_path
        self._asked: str = ""
        self._ends = 0
        self._last_end = ""
        self._beat = clock.monotonic()

    def idle_s(self) -> float:
        """Seconds since the launcher's last poll."""
        return self._clock.monotonic() - self._beat

    def restart(self, reason: str) -> None:
        """End the running engine and start a new one."""
        self._asked = reason

    async def run(self, stop: asyncio.Event) -> None:
        """Keep an engine running until `stop` is set; then drain and end it."""
        backoff = Backoff(self._policy.backoff_first_s, self._policy.backoff_max_s)
        while not stop.is_set():
            began = self._clock.monotonic()
            try:
                cause = await self._life(stop)
            except (OSError, PortTaken) as error:
                cause = "exit"
                self._set(ready=False, reason=str(error))
                log.warning("engine.not_started", error=str(error))
            if stop.is_set():
                break
            lived_s = self._clock.monotonic() - began
            backoff_s = restart_pause_s(backoff, lived_s)
            self._count_end(cause, lived_s)
            self._metrics.engine_ends.labels(cause).inc()
            log.warning(
                "engine.ended",
                cause=cause,
                reason=self.state.reason,
                lived_s=round(lived_s, 1),
                backoff_s=backoff_s,
            )
            await self._pause(stop, backoff_s)

    async def _life(self, stop: asyncio.Event) -> str:
        """One engine from start to end; returns what ended it."""
        _claim(self._address)
        self._drain.reset()
        self._asked = ""
        self.state.generation = next_generation(self._generations)
        self._metrics.engine_generation.set(self.state.generation)
        self._set(ready=False, reason=self._starting())
        output = self._log_path.open("ab") if self._log_path else None
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                guard.__file__,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output or sys.stderr.fileno(),
                stderr=output or sys.stderr.fileno(),
                env=self._environment | {DRAIN_MARKER: str(self._drain.marker.absolute())},
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        log.info("engine.started", generation=self.state.generation, guard=process.pid)
        try:
            return await self._watch(process, stop)
        finally:
            await self._end(process)

    def _count_end(self, cause: str, lived_s: float) -> None:
        """Remember why engines end by themselves, until one stays; an asked restart is none."""
        if cause == "asked" or lived_s >= STEADY_S:
            self._ends = 0
        if cause != "asked":
            self._ends += 1
            self._last_end = self.state.reason

    def _starting(self) -> str:
        """The reason of an engine that starts; in a crash loop, what ended the ones before."""
        if not self._ends:
            return "starting"
        return (
            f"starting again: ended by itself {self._ends} times in a row; last: {self._last_end}"
        )

    async def _watch(self, process: asyncio.subprocess.Process, stop: asyncio.Event) -> str:
        began = last_well = self._clock.monotonic()
        asked = False
        while not stop.is_set():
            self._beat = self._clock.monotonic()
            well = await self._healthy()
            if well and not self.state.ready:
                asked = True
                well = await self._answered(process, stop)
            now = self._clock.monotonic()
            if process.returncode is not None:
                when = " at its first request" if asked and not self.state.ready else ""
                self._set(ready=False, reason=f"exited with status {process.returncode}{when}")
                return "exit"
            if self._asked:
                self._set(ready=False, reason=f"restarting: {self._asked}")
                return "asked"
            if well:
                last_well = now
                if not self.state.ready:
                    self._metrics.engine_start_s.observe(now - began)
                    self._set(ready=True, reason="")
            elif self.state.ready and now - last_well > self._policy.unhealthy_after_s:
                self._set(ready=False, reason=f"no healthy answer for {now - last_well:.0f} s")
                return "unhealthy"
            elif not self.state.ready and now - began > self._policy.start_timeout_s:
                self._set(
                    ready=False,
                    reason=f"not healthy within {self._policy.start_timeout_s:g} s of its start; "
                    "see the engine's log, or raise RATCHET_INFERENCE_ENGINE_START_TIMEOUT_S",
                )
                return "start_timeout"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.poll_s):
                    await _first(process.wait(), stop.wait())
        serving = self.state.ready
        self._set(ready=False, reason="stopping")
        if serving:
            await _first(process.wait(), self._drain.run(), self._drain.hurry.wait())
        return "asked"

    async def _answered(self, process: asyncio.subprocess.Process, stop: asyncio.Event) -> bool:
        """Whether the engine gave a first token; False where it, or all, ended meanwhile."""
        answer = asyncio.ensure_future(self._answers())
        await _first(answer, process.wait(), stop.wait())
        return not answer.cancelled() and answer.result()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        # The guard leads the group and has emptied it, unless the guard was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    async def _pause(self, stop: asyncio.Event, seconds: float) -> None:
        deadline = self._clock.monotonic() + seconds
        while not stop.is_set() and (left := deadline - self._clock.monotonic()) > 0:
            self._beat = self._clock.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._policy.poll_s)):
                    await stop.wait()

    def _set(self, *, ready: bool, reason: str) -> None:
        changed = ready != self.state.ready or reason != self.state.reason
        self.state.ready = ready
        self.state.reason = reason
        self._metrics.engine_up.set(ready)
        if changed:
            log.info("engine.state", ready=ready, reason=reason, generation=self.state.generation)
            self._changed()


class ExternalEngine:
    """Watcher of an external engine: each return to health is a new generation."""

    def __init__(
        self,
        *,
        healthy: Callable[[], Awaitable[bool]],
        changed: Callable[[], None],
        generations: Path,
        clock: Clock,
        metrics: InferenceMetrics,
        poll_s: float = POLL_S,
    ) -> None:
        self.state = EngineState(reason="not seen yet")
        self._healthy = healthy
        self._changed = changed
        self._generations = generations
        self._clock = clock
        self._metrics = metrics
        self._poll_s = poll_s
        self._beat = clock.monotonic()

    def idle_s(self) -> float:
        """Seconds since the watcher's last poll."""
        return self._clock.monotonic() - self._beat

    def restart(self, reason: str) -> None:
        """Report that the engine must be restarted; only its operator can do it."""
        log.error("engine.restart_needed", reason=reason)

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set."""
        while not stop.is_set():
            self._beat = self._clock.monotonic()
            well = await self._healthy()
            if well and not self.state.ready:
                self.state.generation = next_generation(self._generations)
                self._metrics.engine_generation.set(self.state.generation)
            if well != self.state.ready:
                self.state.ready = well
                self.state.reason = "" if well else "its health check fails"
                self._metrics.engine_up.set(well)
                log.info("engine.state", ready=well, generation=self.state.generation)
                self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await stop.wait()


def _claim(address: tuple[str, int]) -> None:
    """Check that the address is free; another listener's health would count as the engine's.

    Raises:
        PortTaken: a process listens there.

    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise PortTaken(
                f"RATCHET_INFERENCE_ENGINE_URL: {address[0]}:{address[1]} cannot be taken "
                f"({error.strerror}); choose another port or end who listens there"
            ) from error


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
