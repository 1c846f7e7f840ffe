"""The stack's own promises, on small real processes: readiness, restart, isolation, a clean end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deploy.local import supervision
from deploy.local.errors import NotRunning, ProcessNotReady, StackError, StackPortTaken
from deploy.local.processes import ROOT
from deploy.local.stack import Stack
from shared.contracts.topics import intake_topic
from tests.support.waiting import wait_until

WEB = {
    "command": [
        sys.executable,
        "-m",
        "http.server",
        "${port.web}",
        "--bind",
        "127.0.0.1",
        "--directory",
        "${data}",
    ],
    "ports": {"web": 1},
    "ready": {"http": "${url.web}/", "timeout_s": 20},
}


def small_stack(run_dir: Path, **changes) -> Stack:
    """One web server in place of everything."""
    web = {**WEB, **changes}
    return Stack(
        run_dir, services=["web"], processes={"web": web}, ports="free", say=lambda _: None
    )


def test_two_stacks_run_side_by_side_and_each_ends_alone(tmp_path):
    first, second = small_stack(tmp_path / "a b"), small_stack(tmp_path / "second")
    with second:
        with first:
            assert first.ports["web"] != second.ports["web"]
            assert urllib.request.urlopen(first.url("web")).status == 200
        assert supervision.marked(first.run_dir) == []
        assert second.is_ready("web")


def test_down_leaves_the_logs_and_no_process(tmp_path):
    with small_stack(tmp_path) as stack:
        supervisord, web = stack.seen(), stack.pid("web")
        assert set(supervisord) >= {"web", "router", "kafka"}
        assert json.loads((tmp_path / "stack.json").read_text())["urls"]["web"] == stack.url("web")
    assert {entry.name for entry in tmp_path.iterdir()} == {"logs"}
    assert "GET / " in stack.log("web").read_text()
    assert not Path(f"/proc/{web}").exists()
    assert supervision.marked(tmp_path) == []


def test_down_keeps_data_unless_told_to_delete_them(tmp_path):
    stack = small_stack(tmp_path).up()
    kept = tmp_path / "data/kept"
    kept.write_text("x")
    stack.down()
    assert kept.read_text() == "x"
    small_stack(tmp_path).up().down(delete_data=True)
    assert not kept.exists()


def test_a_fresh_start_deletes_what_an_earlier_stack_left(tmp_path):
    small_stack(tmp_path).up().down()
    kept = tmp_path / "data/kept"
    kept.write_text("x")
    fresh = Stack(
        tmp_path,
        services=["web"],
        processes={"web": WEB},
        ports="free",
        fresh=True,
        say=lambda _: None,
    )
    with fresh:
        assert not kept.exists()


def test_a_killed_process_comes_back(tmp_path):
    with small_stack(tmp_path) as stack:
        before = stack.kill("web", signal.SIGKILL)
        wait_until(lambda: (seen := stack.seen()["web"]).pid not in (0, before) and seen, "restart")
        stack.wait_ready("web", 10)
        assert stack.pid("web") != before


def test_a_stopped_process_stays_down_until_started(tmp_path):
    with small_stack(tmp_path) as stack:
        stack.stop("web")
        assert not stack.is_ready("web")
        with pytest.raises(NotRunning, match="web"):
            stack.pid("web")
        stack.start("web")
        assert stack.is_ready("web")


def test_restart_with_other_variables(tmp_path):
    show = "import os, sys; print('word:', os.environ['WORD'], flush=True)"
    serve = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
    command = [sys.executable, "-c", f"{show}; {serve}", "${port.web}"]
    with small_stack(tmp_path, command=command, env={"WORD": "100% \"one\", 'two'"}) as stack:
        assert "word: 100% \"one\", 'two'" in stack.log("web").read_text()
        stack.restart("web", {"WORD": "three"})
        assert "word: three" in stack.log_end("web")


def test_children_end_with_their_parent(tmp_path):
    child = "import subprocess, sys; subprocess.Popen(['sleep', '600'])"
    serve = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
    stack = small_stack(
        tmp_path, command=[sys.executable, "-c", f"{child}; {serve}", "${port.web}"]
    )
    with stack:
        assert len(supervision.marked(stack.run_dir)) >= 4  # bound, supervisord, web, sleep
    assert supervision.marked(stack.run_dir) == []


def test_what_does_not_get_ready_is_named_with_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no licence on this machine')"]
    stack = small_stack(tmp_path, command=command, ready={"tcp": "web", "timeout_s": 2})
    with pytest.raises(ProcessNotReady, match=r"(?s)web.*not ready after 2 s.*no licence"), stack:
        pass
    assert supervision.marked(stack.run_dir) == []


def test_what_keeps_dying_is_given_up_before_its_time(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no licence on this machine')"]
    stack = small_stack(tmp_path, command=command, ready={"tcp": "web", "timeout_s": 50})
    with pytest.raises(ProcessNotReady, match=r"(?s)web ended 5 times.*no licence"), stack:
        pass


def test_a_program_that_is_missing_says_what_brings_it(tmp_path):
    stack = small_stack(
        tmp_path, command=["ratchet-no-such-program"], ready={"tcp": "web", "timeout_s": 2}
    )
    with pytest.raises(
        ProcessNotReady, match="ratchet-no-such-program is not installed: run make setup"
    ):
        stack.up()
    stack.down()


def test_up_twice_is_harmless_and_another_choice_is_refused(tmp_path):
    with small_stack(tmp_path) as stack:
        again = small_stack(tmp_path).up()
        assert again.ports == stack.ports
        with pytest.raises(StackError, match="make down first"):
            Stack(tmp_path, services=["kafka"], say=lambda _: None).up()


def test_a_block_takes_down_what_it_started_and_no_stack_that_ran_before(tmp_path):
    with small_stack(tmp_path) as stack:
        pid = stack.pid("web")
        kept = tmp_path / "data/kept"
        kept.write_text("x")
        with small_stack(tmp_path) as attached:
            assert (stack.started, attached.started) == (True, False)
        other = Stack(tmp_path, services=["kafka"], say=lambda _: None)
        with pytest.raises(StackError, match="make down first"), other:
            pass
        assert stack.pid("web") == pid
        assert kept.read_text() == "x"
    assert not stack.started
    assert supervision.marked(tmp_path) == []


def test_data_that_was_kept_survives_a_start_without_its_ports(tmp_path, monkeypatch):
    small_stack(tmp_path).up().down()
    kept = tmp_path / "data/kept"
    kept.write_text("x")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        monkeypatch.setenv("RATCHET_WEB_PORT", str(holder.getsockname()[1]))
        stack = Stack(tmp_path, services=["web"], processes={"web": WEB}, say=lambda _: None)
        with pytest.raises(StackPortTaken), stack:
            pass
    assert kept.read_text() == "x"


def test_a_stack_ends_with_the_program_that_started_it(tmp_path):
    program = (
        "import sys; from deploy.local.stack import Stack; import time\n"
        "from tests.integration.test_stack import small_stack; from pathlib import Path\n"
        "small_stack(Path(sys.argv[1])).up(); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        assert supervision.marked(tmp_path)
        owner.kill()
    wait_until(lambda: not supervision.marked(tmp_path), "everything gone")


def test_a_kept_stack_outlives_its_starter_and_its_supervisord_can_be_lost(tmp_path):
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", "--run-dir", str(tmp_path), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    up = command("up", "redis", "--ports", "free")
    assert up.returncode == 0, up.stderr
    assert "redis" in up.stdout
    assert command("status").returncode == 0
    assert "Ready to accept connections" in command("logs", "redis").stdout

    # What supervisord's death leaves behind is found by its mark, and only that.
    supervisord = int((tmp_path / "supervisord.pid").read_text())
    os.kill(supervisord, signal.SIGKILL)
    wait_until(lambda: supervisord not in supervision.marked(tmp_path), "supervisord gone")
    assert len(supervision.marked(tmp_path)) == 1
    assert command("status").returncode == 1
    assert command("down").returncode == 0
    assert supervision.marked(tmp_path) == []
    assert command("status").returncode == 1


def test_the_log_is_there_again_after_down_and_up_on_other_ports(tmp_path, unique):
    def stack() -> Stack:
        env = {"RATCHET_TENANTS": unique}
        return Stack(tmp_path, services=["topics"], env=env, ports="free", say=lambda _: None)

    def state() -> str:
        (line,) = re.findall(
            rf"{intake_topic(unique)}.*", (tmp_path / "logs/topics.log").read_text()
        )
        return line

    first = stack().up()
    assert "created" in state()
    first.down()
    with stack() as second:
        assert second.ports["kafka"] != first.ports["kafka"]
        assert "as declared" in state()
    assert not (tmp_path / "data").exists()


def test_the_third_party_servers_are_ready_when_they_say_so(
    servers, kafka, redis_server, prometheus
):
    for name in ("kafka", "redis", "prometheus"):
        assert servers.stack.is_ready(name)
    with urllib.request.urlopen(f"{prometheus}/api/v1/status/config") as answer:
        assert "targets.json" in json.load(answer)["data"]["yaml"]


def test_prometheus_scrapes_what_a_test_adds(servers, prometheus):
    def targets() -> list[str]:
        with urllib.request.urlopen(f"{prometheus}/api/v1/targets?state=active") as answer:
            active = json.load(answer)["data"]["activeTargets"]
        return [t["scrapeUrl"] for t in active if t["labels"]["job"] == "own"]

    servers.stack.scrape("own", [f"127.0.0.1:{servers.stack.ports['prometheus']}"])
    wait_until(targets, "the target appears")
    servers.stack.scrape("own", [])
    wait_until(lambda: not targets(), "the target goes")


def test_prometheus_serves_the_runbooks_that_alerts_link_to(prometheus: str) -> None:
    with urllib.request.urlopen(f"{prometheus}/user/runbooks.html", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/html")
        assert b'id="ratchetdeadletters"' in answer.read()
    with urllib.request.urlopen(f"{prometheus}/api/v1/status/flags", timeout=10) as answer:
        assert json.load(answer)["data"]["web.external-url"] == prometheus
