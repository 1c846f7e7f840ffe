"""`make setup` where it cannot install: the error names what is missing and the command for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from deploy.local.processes import ROOT

TOOLS = [
    "bash",
    "basename",
    "cat",
    "cut",
    "dirname",
    "env",
    "flock",
    "grep",
    "mkdir",
    "mv",
    "printf",
    "pwd",
    "rm",
    "sed",
    "sha256sum",
    "sleep",
    "tail",
    "tee",
    "tr",
]
PROGRAMS = [
    "redis-server",
    "prometheus",
    "prometheus-alertmanager",
    "java",
    "mvn",
    "chromium",
    "wrk",
    "nginx",
    "python3",
]


DEBIAN = "ID=debian\n"
UBUNTU = 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n'
MINT = 'NAME="Linux Mint"\nID=linuxmint\nID_LIKE="ubuntu debian"\n'


@pytest.fixture
def machine(tmp_path):
    """A copy of the set-up script and a PATH that holds only what a test puts there."""
    script = tmp_path / "deploy/local/setup.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "deploy/local/setup.sh", script)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found:
            (programs / name).symlink_to(found)
    for name in PROGRAMS:
        fake(programs, name, "exit 0")
    (tmp_path / "os-release").write_text(DEBIAN)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest"):
            parent.chmod(0o755)
    (tmp_path / ".tools").mkdir(mode=0o777)
    (tmp_path / ".tools").chmod(0o777)
    return tmp_path


def fake(programs: Path, name: str, body: str) -> None:
    """A program that does as little as a test needs."""
    path = programs / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


def setup(machine: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as a user who is not root."""
    return subprocess.run(
        ["bash", "deploy/local/setup.sh"],
        cwd=machine,
        env={
            "PATH": str(machine / "bin"),
            "OS_RELEASE": str(machine / "os-release"),
            **environment,
        },
        user="nobody" if os.geteuid() == 0 else None,
        group="nogroup" if os.geteuid() == 0 else None,
        extra_groups=[] if os.geteuid() == 0 else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_not_debian_names_what_is_missing(machine):
    (machine / "bin/redis-server").unlink()
    (machine / "bin/mvn").unlink()
    done = setup(machine)
    assert done.returncode == 1
    assert "missing: redis-server maven, and this is no Debian or Ubuntu" in done.stderr


def test_without_root_and_sudo_the_command_is_shown(machine):
    fake(machine / "bin", "apt-get", "exit 99")
    (machine / "bin/java").unlink()
    done = setup(machine)
    assert done.returncode == 1
    assert "neither root nor sudo" in done.stderr
    assert "sudo apt-get install --no-install-recommends default-jre-headless" in done.stderr


def test_a_failing_installation_shows_the_end_of_its_log(machine):
    fake(machine / "bin", "apt-get", "echo 'E: Unable to locate package'; exit 100")
    fake(machine / "bin", "sudo", "exit 0")
    (machine / "bin/chromium").unlink()
    fake(
        machine / "bin",
        "sudo",
        'case $1 in -n|-v) exit 0;; apt-get|env) shift 0; "$@";; *) exit 0;; esac',
    )
    done = setup(machine)
    assert done.returncode == 1
    assert "Debian packages failed (exit 100)" in done.stderr
    assert "missing: chromium" in done.stdout
    assert "E: Unable to locate package" in done.stderr


@pytest.mark.parametrize("release", [UBUNTU, MINT], ids=["ubuntu", "mint"])
def test_ubuntu_is_not_asked_for_a_package_it_does_not_have(machine, release):
    (machine / "os-release").write_text(release)
    fake(machine / "bin", "apt-get", "exit 99")
    for name in ("chromium", "mvn"):
        (machine / "bin" / name).unlink()
    done = setup(machine)
    assert done.returncode == 1
    assert "missing: maven, and neither root nor sudo" in done.stderr


@pytest.mark.parametrize("release", [DEBIAN, ""], ids=["debian", "nameless"])
def test_elsewhere_the_browser_is_a_package_like_others(machine, release):
    (machine / "os-release").write_text(release)
    fake(machine / "bin", "apt-get", "exit 99")
    for name in ("chromium", "mvn"):
        (machine / "bin" / name).unlink()
    done = setup(machine)
    assert done.returncode == 1
    assert "missing: maven chromium, and neither root nor sudo" in done.stderr


def test_java_that_does_not_run_is_said(machine):
    fake(machine / "bin", "java", "exit 1")
    done = setup(machine)
    assert done.returncode == 1
    assert "java is there but does not run" in done.stderr
    assert "default-jre-headless" in done.stderr


def test_no_fitting_python_is_said(machine):
    fake(machine / "bin", "python3", 'if [[ $1 == -V ]]; then echo "Python 3.9.2"; fi; exit 1')
    fake(machine / "bin", "apt-get", "exit 99")
    done = setup(machine)
    assert done.returncode == 1
    assert "python3" in done.stderr


def test_an_unknown_torch_build_is_refused():
    done = subprocess.run(
        [ROOT / "deploy/local/setup.sh"],
        env={**os.environ, "TORCH": "tpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "TORCH=tpu is none of cpu, default, cuda" in done.stderr


def test_a_second_setup_takes_under_five_seconds():
    begun = time.monotonic()
    done = subprocess.run(
        [ROOT / "deploy/local/setup.sh"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 5
    assert done.stdout.splitlines()[-1].startswith("setup: everything is there")
