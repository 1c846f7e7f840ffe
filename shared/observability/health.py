"""Health checks: liveness that means progress, and readiness.

`/healthz` fails when something that should go round has stood still: restarting may help.
`/readyz` fails while the service cannot do its work: send it none. Both say why.
"""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[[], str | None]
"""Returns None when all is well, else what is wrong and what would help."""

STOP_TIMEOUT_S = 10
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that they close them and not we under their hands."""


class Health:
    """Named checks of liveness and readiness. Checks are quick and never wait."""

    def __init__(self) -> None:
        self._alive: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}
        self._notes: dict[str, Check] = {}

    def alive(self, name: str, check: Check) -> None:
        """Add a check of progress."""
        self._alive[name] = check

    def ready(self, name: str, check: Check) -> None:
        """Add a check of readiness."""
        self._ready[name] = check

    def note(self, name: str, check: Check) -> None:
        """Add a note that readiness reports without failing: the service works without it."""
        self._notes[name] = check

    def progress(self, name: str, idle_s: Callable[[], float], limit_s: float) -> None:
        """Add a check of progress: alive while `idle_s` stays under `limit_s` seconds."""

        def check() -> str | None:
            idle = idle_s()
            if idle <= limit_s:
                return None
            return f"no progress for {idle:.0f} s, at most {limit_s:.0f} s is right"

        self.alive(name, check)

    def liveness(self) -> tuple[bool, dict[str, str]]:
        """Whether every liveness check passes, and the result of each."""
        return _run(self._alive)

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether every check passes, and the result of each check and note."""
        well, said = _run({**self._alive, **self._ready})
        return well, {**said, **_run(self._notes)[1]}


def _run(checks: dict[str, Check]) -> tuple[bool, dict[str, str]]:
    said = {name: check() for name, check in checks.items()}
    return all(word is None for word in said.values()), {
        name: word or "ok" for name, word in said.items()
    }
