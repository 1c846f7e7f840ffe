"""`make setup` where it cannot install: the error names what is missing and the command for it."""

from __future__ import annotations

import os
import re
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
    "wrk",
    "nginx",
    "chromium",
    "python3",
]


UV = """
echo "$*" >>"$CALLS"
case "$1 $*" in
  venv*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    printf '#!/bin/bash\\necho .tools\\n' >"$folder/bin/python"
    chmod +x "$folder/bin/python" ;;
  *"go install"*)
    if [[ -n $GO_FAILS ]]; then echo 'no route to the module proxy'; exit 1; fi
    touch "$GOBIN/helm"
    chmod +x "$GOBIN/helm" ;;
  *"go env GOMODCACHE"*) echo "$PWD/modules" ;;
esac
"""
SCHEMA = "modules/github.com/compose-spec/compose-go/v2@v2.9.0/schema/compose-spec.json"


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
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o055:
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


def setup(
    machine: Path, *arguments: str, root: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the script, as a user who is not root unless told otherwise."""
    nobody = os.geteuid() == 0 and not root
    return subprocess.run(
        ["bash", "deploy/local/setup.sh", *arguments],
        cwd=machine,
        env={
            "PATH": str(machine / "bin"),
            **environment,
        },
        user="nobody" if nobody else None,
        group="nogroup" if nobody else None,
        extra_groups=[] if nobody else None,
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
    (machine / "bin/wrk").unlink()
    fake(
        machine / "bin",
        "sudo",
        'case $1 in -n|-v) exit 0;; apt-get|env) shift 0; "$@";; *) exit 0;; esac',
    )
    done = setup(machine)
    assert done.returncode == 1
    assert "Debian packages failed (exit 100)" in done.stderr
    assert "missing: wrk" in done.stdout
    assert "E: Unable to locate package" in done.stderr


@pytest.mark.parametrize("system", ["debian", "ubuntu"])
def test_a_browser_is_asked_for_where_its_package_is(machine, system):
    fake(machine / "bin", "apt-get", "exit 99")
    for name in ("chromium", "mvn"):
        (machine / "bin" / name).unlink()
    release = machine / "os-release"
    release.write_text(f"NAME=x\nID={system}\n")
    release.chmod(0o644)
    done = setup(machine, OS_RELEASE=str(release))
    assert done.returncode == 1
    missing = "maven chromium" if system == "debian" else "maven"
    assert f"missing: {missing}, and neither root nor sudo" in done.stderr
    assert ("no Chromium here" in done.stdout + done.stderr) is (system == "ubuntu")


@pytest.fixture
def with_uv(machine):
    """The machine with a uv that makes what it is asked for out of nothing, and notes each call."""
    for name in ("chmod", "cp", "touch"):
        (machine / "bin" / name).symlink_to(shutil.which(name))
    for path in ("requirements", "deploy/local/kafka", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, machine / path)
    schema = machine / SCHEMA
    schema.parent.mkdir(parents=True)
    schema.write_text("{}")
    (machine / ".tools/uv/bin").mkdir(parents=True)
    (version,) = re.findall(r"UV_VERSION=(\S+)", (machine / "deploy/local/setup.sh").read_text())
    (machine / ".tools/uv/version").write_text(version)
    fake(machine / ".tools/uv/bin", "uv", UV)
    fake(machine / ".tools/uv/bin", "python", "exit 0")
    return machine


def go_calls(machine: Path) -> list[str]:
    return re.findall(r"\bgo .*", (machine / "calls").read_text())


def test_helm_and_the_compose_schema_are_brought_once_at_their_versions(with_uv):
    first = setup(with_uv, root=True, CALLS=str(with_uv / "calls"))
    assert first.returncode == 0, first.stdout + first.stderr
    kubernetes = " ".join(
        f"-X helm.sh/helm/v3/pkg/{package}.k8sVersionMajor=1 "
        f"-X helm.sh/helm/v3/pkg/{package}.k8sVersionMinor=34"
        for package in ("chartutil", "lint/rules")
    )
    assert go_calls(with_uv)[:3] == [
        f"go install -trimpath -ldflags {kubernetes} helm.sh/helm/v3/cmd/helm@v3.19.0",
        "go install -trimpath sigs.k8s.io/kustomize/kustomize/v5@v5.7.1",
        "go mod download github.com/compose-spec/compose-go/v2@v2.9.0",
    ]
    assert (with_uv / ".tools/bin/helm").exists()
    assert (with_uv / ".tools/compose-spec.json").read_text() == "{}"
    (with_uv / "calls").write_text("")
    assert setup(with_uv, root=True, CALLS=str(with_uv / "calls")).returncode == 0
    assert not go_calls(with_uv)


def test_helm_that_was_deleted_is_brought_again(with_uv):
    assert setup(with_uv, root=True, CALLS=str(with_uv / "calls")).returncode == 0
    (with_uv / ".tools/bin/helm").unlink()
    assert setup(with_uv, root=True, CALLS=str(with_uv / "calls")).returncode == 0
    assert (with_uv / ".tools/bin/helm").exists()


def test_helm_that_cannot_be_built_fails_the_setup_with_the_cause(with_uv):
    done = setup(with_uv, root=True, CALLS=str(with_uv / "calls"), GO_FAILS="yes")
    assert done.returncode == 1
    assert "helm v3.19.0" in done.stderr
    assert "no route to the module proxy" in done.stderr
    assert not (with_uv / ".tools/go-tools.stamp").exists()


def test_the_site_of_the_documents_needs_neither_torch_nor_kafka_nor_go(with_uv):
    done = setup(with_uv, "docs", root=True, CALLS=str(with_uv / "calls"))
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name for path in with_uv.glob(".*") if (path / ".ratchet-stamp").exists()}
    assert made == {".venv", ".venv-docs"}
    assert not (with_uv / ".kafka").exists()
    assert not go_calls(with_uv)


@pytest.mark.parametrize("name", [".venv", ".venv-ml"])
def test_an_environment_of_another_checkout_is_never_emptied(with_uv, name):
    (with_uv / "bin" / "readlink").symlink_to(shutil.which("readlink"))
    (with_uv / "other").mkdir()
    (with_uv / name).symlink_to("other")
    done = setup(with_uv, root=True, CALLS=str(with_uv / "calls"))
    assert done.returncode == 1
    assert f"{name} is a link to other" in done.stderr
    assert f"rm {name}" in done.stderr
    assert not any((with_uv / "other").iterdir())


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
