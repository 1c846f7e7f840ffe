"""Starting processes in the order of dependence, and waiting until they are ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deploy.local.errors import ProcessNotReady
from deploy.local.processes import Process, Ready
from deploy.local.readiness import is_ready, missing
from deploy.local.supervision import Supervisor

_POLL_S = 0.1
_SLOW_S = 2.0
"""From here on it is said how long a process took."""
_PROGRESS_EVERY_S = 10.0
# A process that had so many lives without getting ready is not slow, it is broken.
_LIVES = 5


@dataclass(slots=True)
class _Awaited:
    since: float
    allowed_s: float
    pids: set[int] = field(default_factory=set)


class Startup:
    """One bringing-up of some processes; it blocks, and nothing waits longer than declared."""

    def __init__(
        self,
        supervisor: Supervisor,
        declared: Mapping[str, Process],
        *,
        filled: Callable[[str], Ready],
        begin: Callable[[str], None],
        log_end: Callable[[str], str],
        say: Callable[[str], None],
    ) -> None:
        self._supervisor = supervisor
        self._declared = declared
        self._filled = filled
        self._begin = begin
        self._log_end = log_end
        self._say = say
        self._awaited: dict[str, _Awaited] = {}

    def bring_up(self, names: Sequence[str]) -> None:
        """Begins each when what it comes after is ready; returns when all are.

        `begin` blocks for a process that runs once. Raises `ProcessNotReady`.
        """
        ready: set[str] = set()
        pending = list(names)
        while pending or self._awaited:
            for name in [n for n in pending if ready.issuperset(self._declared[n].after)]:
                pending.remove(name)
                self._begin(name)
                if self._declared[name].once:
                    ready.add(name)
                else:
                    self._await(name, None)
            ready.update(self._pass_ready())

    def wait(self, name: str, timeout_s: float | None = None) -> None:
        """Waits for one that was begun elsewhere. Raises `ProcessNotReady`."""
        self._await(name, timeout_s)
        while self._awaited:
            self._pass_ready()

    def _await(self, name: str, timeout_s: float | None) -> None:
        allowed = self._filled(name).timeout_s if timeout_s is None else timeout_s
        self._awaited[name] = _Awaited(time.monotonic(), allowed)

    def _pass_ready(self) -> set[str]:
        """Asks all that are awaited for one round of progress; returns those now ready."""
        told = time.monotonic()
        passed: set[str] = set()
        while self._awaited and not passed:
            for name in list(self._awaited):
                if self._has_become_ready(name):
                    took = time.monotonic() - self._awaited.pop(name).since
                    passed.add(name)
                    if took >= _SLOW_S:
                        self._say(f"{name} is ready ({took:.0f} s)")
            if not passed and self._awaited:
                if time.monotonic() - told >= _PROGRESS_EVERY_S:
                    told = time.monotonic()
                    longest = told - min(waiting.since for waiting in self._awaited.values())
                    named = ", ".join(self._named(name) for name in self._awaited)
                    self._say(f"waiting for {named} ({longest:.0f} s)")
                time.sleep(_POLL_S)
        return passed

    def _has_become_ready(self, name: str) -> bool:
        seen = self._supervisor.seen()[name]
        if seen.pid and is_ready(self._filled(name)):
            return True
        waiting = self._awaited[name]
        if seen.pid:
            waiting.pids.add(seen.pid)
        if seen.state == "FATAL" or len(waiting.pids) >= _LIVES:
            raise self._not_ready(name, f"ended {len(waiting.pids)} times without getting ready")
        if time.monotonic() - waiting.since > waiting.allowed_s:
            raise self._not_ready(
                name, f"is {seen.state.lower()}, not ready after {waiting.allowed_s:.0f} s"
            )
        return False

    def _not_ready(self, name: str, why: str) -> ProcessNotReady:
        return ProcessNotReady(
            f"{self._named(name)} {why}. The end of its log:\n{self._log_end(name)}"
        )

    def _named(self, name: str) -> str:
        """A process, with what it says that it lacks."""
        lacks = missing(self._filled(name))
        return f"{name} ({lacks})" if lacks else name
