"""Guard process between service and engine: no engine outlives the service.

Run as a program of its own: `python guard.py <engine command>`, with a pipe as standard input.
It ends the engine and every process that came from it once the pipe closes, which happens however
the service ends, and once the engine's own first process ends. Exits with the engine's status.
Uses the standard library only and needs Linux (adopts orphans, parent-death signal, pidfd).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TERM_GRACE_S = 10.0
"""Seconds an engine has to end by itself."""
KILL_LIMIT_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _die_with_guard() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Every living process below `root`, by /proc; zombies left out."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.extend(below)
        waiting.extend(below)
    return found


def _wait(process: subprocess.Popen[bytes], pidfd: int, timeout_s: float | None) -> bool:
    """Wait for the engine's end or, without a timeout, for the service's; True: the engine's."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if timeout_s is None:
        poll.register(0, select.POLLIN | select.POLLHUP)
    ready = poll.poll(None if timeout_s is None else timeout_s * 1000)
    return any(descriptor == pidfd for descriptor, _ in ready) and process.poll() is not None


def _sweep() -> None:
    """Kill and reap what is left below us."""
    deadline = time.monotonic() + KILL_LIMIT_S
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


def main(command: list[str]) -> int:
    """Run the engine until it or the service ends; returns the engine's exit status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The service is told too, and closes the pipe when it is done.
        signal.signal(number, lambda *_: None)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_guard,  # noqa: PLW1509 this program has one thread
    ) as process:
        pidfd = os.pidfd_open(process.pid)
        if not _wait(process, pidfd, None):
            process.terminate()
            if not _wait(process, pidfd, TERM_GRACE_S):
                process.kill()
        process.wait()
    _sweep()
    status = process.returncode
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
