"""Supervisord for one stack: its configuration, its start, its answers."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import http.client
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport  # pyright: ignore[reportMissingTypeStubs]

from deploy.local.errors import NotRunning, StackError
from deploy.local.processes import ROOT, Process

MARK = "RATCHET_STACK"
"""Environment variable that names the run directory in every process of a stack."""

_START_S = 60.0
_POLL_S = 0.05
_LOG_BYTES = 50_000_000
# A process that dies this soon counts as not started: supervisord waits 1, 2, 3 … s between tries.
_STARTING_S = 5
_RETRIES = 20
_SOCKET_PATH_BYTES = 100
# The states in which supervisord does not start a process by itself.
_DOWN = frozenset({"STOPPED", "FATAL"})


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What supervisord knows of a process. `pid` is 0 when it does not run."""

    state: str
    pid: int
    up_s: int


def socket_path(run_dir: Path) -> Path:
    """Supervisord's control socket; unix socket paths hold about a hundred bytes only."""
    inside = run_dir / "supervisord.sock"
    if len(os.fsencode(inside)) <= _SOCKET_PATH_BYTES:
        return inside
    digest = hashlib.blake2b(os.fsencode(run_dir), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"ratchet-{digest}.sock"


def render(run_dir: Path, processes: Sequence[tuple[str, Process]]) -> str:
    """Supervisord's configuration. The order given is the order of dependence: first in, last out."""
    parser = configparser.RawConfigParser()
    socket = f"unix://{socket_path(run_dir)}"
    sections: dict[str, dict[str, object]] = {
        "supervisord": {
            "nodaemon": "true",
            "logfile": run_dir / "logs/supervisord.log",
            "pidfile": run_dir / "supervisord.pid",
            "childlogdir": run_dir / "logs",
            "directory": ROOT,
        },
        "unix_http_server": {"file": socket_path(run_dir), "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "supervisorctl": {"serverurl": socket},
    }
    for place, (name, process) in enumerate(processes):
        launch = (sys.executable, "-I", "-S", ROOT / "deploy/local/launch.py", spec(run_dir, name))
        sections[f"program:{name}"] = {
            "command": " ".join(f'"{part}"' for part in launch),
            "priority": place,
            "autostart": "false",
            "autorestart": "true",
            "startsecs": _STARTING_S,
            "startretries": _RETRIES,
            "stopsignal": process.stop_signal,
            "stopwaitsecs": process.stop_s,
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": log_path(run_dir, name),
            "stdout_logfile_maxbytes": _LOG_BYTES,
            "stdout_logfile_backups": 1,
        }
    for section, settings in sections.items():
        parser.add_section(section)
        for key, value in settings.items():
            parser.set(section, key, str(value).replace("%", "%%"))
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def spec(run_dir: Path, name: str) -> Path:
    """The file from which `launch.py` becomes the process."""
    return run_dir / "processes" / f"{name}.json"


def log_path(run_dir: Path, name: str) -> Path:
    """Standard output and error of a process, oldest first."""
    return run_dir / "logs" / f"{name}.log"


class Supervisor:
    """A handle on the supervisord of one run directory, running or not."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._socket = socket_path(run_dir)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, bound: bool) -> None:
        """Starts supervisord and waits until it answers.

        Bound, it ends with this Python process; else it stays until `shutdown`.
        """
        self._socket.unlink(missing_ok=True)
        config = str(self._run_dir / "supervisord.conf")
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", config]
        if bound:
            command = [sys.executable, str(ROOT / "deploy/local/bound.py"), *command]
        output = log_path(self._run_dir, "supervisord.out")
        with output.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, MARK: str(self._run_dir)},
                stdin=subprocess.PIPE if bound else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self.is_running():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StackError(
                    f"supervisord did not start:\n{output.read_text(errors='replace')}"
                )
            time.sleep(_POLL_S)

    def is_running(self) -> bool:
        """Whether this run directory's supervisord answers."""
        try:
            return self._call("getState")["statename"] == "RUNNING"
        except NotRunning:
            return False

    def seen(self) -> dict[str, ProcessStatus]:
        """Every configured process. Raises `NotRunning` when supervisord does not answer."""
        return {
            info["name"]: ProcessStatus(
                state=info["statename"],
                pid=info["pid"],
                up_s=info["now"] - info["start"] if info["pid"] else 0,
            )
            for info in self._call("getAllProcessInfo")
        }

    def start_process(self, name: str) -> None:
        """Starts it unless it runs; waits for a stop under way, and no longer.

        Supervisord calls a start of what is being stopped a success, and starts nothing.
        """
        deadline = time.monotonic() + _START_S
        while self.seen()[name].state == "STOPPING":
            if time.monotonic() > deadline:
                raise StackError(f"{name} is still being stopped after {_START_S:.0f} s")
            time.sleep(_POLL_S)
        self._change("startProcess", name, "ALREADY_STARTED")

    def stop_processes(self, names: Sequence[str], timeout_s: float) -> None:
        """Stops them all at once, children included, and waits until they are gone.

        Asks again while one has not taken the stop: supervisord answers that a process which has
        just died does not run, and then starts it. Raises `StackError` when one still runs after
        the time.
        """
        deadline = time.monotonic() + timeout_s
        while states := {
            name: status.state
            for name, status in self.seen().items()
            if name in names and status.state not in _DOWN
        }:
            if time.monotonic() > deadline:
                raise StackError(f"still running {timeout_s:.0f} s after their stop: {states}")
            for name, state in states.items():
                if state != "STOPPING":
                    self._change("stopProcess", name, "NOT_RUNNING")
            time.sleep(_POLL_S)

    def shutdown(self, timeout_s: float) -> None:
        """Stops what still runs, and supervisord itself; returns when it is gone or time is up."""
        try:
            pid = self._call("getPID")
            self._call("shutdown")
        except NotRunning:
            return
        deadline = time.monotonic() + timeout_s
        while pid in marked(self._run_dir) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_START_S)

    def _change(self, method: str, name: str, harmless: str) -> None:
        try:
            self._call(method, name, False)
        except xmlrpc.client.Fault as fault:
            if harmless not in fault.faultString:
                raise StackError(
                    f"supervisord refused {method} {name}: {fault.faultString}"
                ) from None

    def _call(self, method: str, *arguments: Any) -> Any:
        # A new connection for each question: the transport keeps one open that a thread of ours
        # must not share with another, and that a restart leaves half-closed.
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        server = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(server.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException):
            raise NotRunning(
                f"no stack runs in {self._run_dir}: make up (or python -m deploy.local up)"
            ) from None
        finally:
            transport.close()


def marked(run_dir: Path) -> list[int]:
    """Process ids that belong to this run directory, by the mark in their environment."""
    own = {os.getpid(), os.getppid()}
    mark = f"{MARK}={run_dir}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def sweep(run_dir: Path, timeout_s: float = 5.0) -> int:
    """Ends what a killed supervisord left behind; returns how many processes that were.

    Raises `StackError` where one stays, as what waits for a dead disk does.
    """
    remaining = marked(run_dir)
    count = len(remaining)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for pid in remaining:
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + timeout_s
        while (remaining := marked(run_dir)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    if remaining:
        raise StackError(f"processes {remaining} of {run_dir} do not end, not by SIGKILL either")
    return count
