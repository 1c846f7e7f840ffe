"""A stop holds whatever the process does at that moment; supervisord's answers are scripted."""

from __future__ import annotations

import signal
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest

from deploy.local import supervision
from deploy.local.errors import StackError
from deploy.local.supervision import Supervisor

NOT_RUNNING = xmlrpc.client.Fault(70, "NOT_RUNNING: web")
RUNNING_STATES = {"STARTING", "RUNNING", "BACKOFF"}


class ScriptedSupervisor(Supervisor):
    """One process, `web`, whose state is the next of a list at each question, then the last."""

    def __init__(self, run_dir: Path, *states: str) -> None:
        super().__init__(run_dir)
        self.states = list(states)
        self.stops = self.starts = 0

    def _call(self, method: str, *arguments: Any) -> Any:
        if method == "getAllProcessInfo":
            state = self.states.pop(0) if self.states[0] == "STOPPING" else self.states[0]
            return [{"name": "web", "statename": state, "pid": 0, "now": 1, "start": 0}]
        if method == "startProcess":
            # As supervisord: what has not ended yet is not started, and that is no fault.
            self.starts += self.states[0] in ("STOPPED", "EXITED", "FATAL")
            return True
        assert (method, *arguments) == ("stopProcess", "web", False)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state not in RUNNING_STATES:
            raise NOT_RUNNING
        self.stops += 1
        self.states = ["STOPPED"]
        return True


def test_a_process_that_has_just_died_and_is_started_again_is_stopped(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(tmp_path, "EXITED", "STARTING")
    supervisor.stop_processes(["web"], 10)
    assert (supervisor.stops, supervisor.states) == (1, ["STOPPED"])


def test_a_process_that_is_being_stopped_is_started_once_it_is_down(tmp_path: Path) -> None:
    supervisor = ScriptedSupervisor(tmp_path, "STOPPING", "STOPPING", "STOPPED")
    supervisor.start_process("web")
    assert supervisor.starts == 1


def test_what_no_signal_ends_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    monkeypatch.setattr(supervision, "marked", lambda _: [4_000_000])
    monkeypatch.setattr(supervision.os, "kill", lambda _, number: signals.append(number))
    with pytest.raises(StackError, match="4000000"):
        supervision.sweep(tmp_path, 0)
    assert signals == [signal.SIGTERM, signal.SIGKILL]


@pytest.mark.parametrize("state", ["STOPPED", "FATAL"])
def test_what_supervisord_leaves_down_is_not_asked(tmp_path: Path, state: str) -> None:
    supervisor = ScriptedSupervisor(tmp_path, state)
    supervisor.stop_processes(["web"], 10)
    assert supervisor.stops == 0


def test_what_does_not_stop_is_named_with_its_state(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"still running 0 s after their stop: \{'web': 'UNKNOWN'"):
        ScriptedSupervisor(tmp_path, "UNKNOWN").stop_processes(["web"], 0)
