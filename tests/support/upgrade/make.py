"""Make the upgrade's fixture anew with the code of a release: see tests/fixtures/upgrade/README.md.

python -m tests.support.upgrade.make REVISION
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from deploy.local.processes import ROOT
from tests.support.upgrade.chart import keep_chart

FIXTURE = ROOT / "tests/fixtures/upgrade"
ENVIRONMENTS = (".venv", ".venv-ml", ".tools", ".kafka")
FILES = ("state.tar.xz", "expected.json")


def make(revision: str) -> None:
    """Run `release` in a work tree of the revision, and take over what it wrote."""
    with tempfile.TemporaryDirectory(prefix="upgrade") as temporary:
        tree, folder = Path(temporary) / "tree", Path(temporary) / "fixture"
        folder.mkdir()
        _git("worktree", "add", "--detach", str(tree), revision)
        try:
            for name in ENVIRONMENTS:
                (tree / name).symlink_to(ROOT / name)
            own = Path(__file__).parent
            shutil.copytree(own, tree / own.relative_to(ROOT), dirs_exist_ok=True)
            command = [sys.executable, "-m", "tests.support.upgrade.release", str(folder)]
            env = {**os.environ, "PYTHONPATH": str(tree)}
            subprocess.run(command, cwd=tree, env=env, check=True)
        finally:
            _git("worktree", "remove", "--force", str(tree))
        FIXTURE.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(folder / name, FIXTURE / name)
    keep_chart(revision)
    made = {
        "revision": _git("rev-parse", revision),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (FIXTURE / "manifest.json").write_text(json.dumps(made, indent=1) + "\n")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision", help="the release's commit or tag")
    make(parser.parse_args().revision)
