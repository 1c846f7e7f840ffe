"""Every command of docs/*.md that one machine can run ends well on a stack that serves."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.e2e.conftest import SECOND
from tests.e2e.documented import DOCS, commands, runs
from tests.e2e.readme import BLOCKS, ROLLOUT, at_home, run_bash, run_python
from tests.support.command import ratchet

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]

CURL = "fail\nretry = 20\nretry-delay = 1\nretry-all-errors\n"
"""An answer of 4xx is a failure, and what is folded seconds later is asked for again."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home and working directory with the files that the pages' commands read."""
    said = "\n\nHuman: Where is my parcel?\n\nAssistant:"
    turns = [{"role": "user", "content": "Where is my parcel?"}]
    pair = {"messages": turns, "chosen": "On its way.", "rejected": "Who knows."}
    logged = {
        "id": "t-1",
        "prompt": "Hello?",
        "completion": "Hi.",
        "feedback": "up",
        "user_id": "u-5",
    }
    (tmp_path / ".curlrc").write_text(CURL)
    (tmp_path / "traces.jsonl").write_text(json.dumps(logged) + "\n")
    (tmp_path / "prompts.jsonl").write_text("Where is my parcel?\n")
    (tmp_path / "train.jsonl").write_text(json.dumps(pair) + "\n")
    with gzip.open(tmp_path / "hh.jsonl.gz", "wt") as file:
        row = {"chosen": f"{said} On its way.", "rejected": f"{said} Who knows."}
        file.write(json.dumps(row) + "\n")
    return tmp_path


@pytest.fixture
def names(two_versions: Stack) -> dict[str, str]:
    """What the pages' placeholders stand for here; a rollout was begun and ended by hand."""
    env = two_versions.environment()
    run_python(BLOCKS["connect"], two_versions)
    run_bash(ROLLOUT, two_versions, timeout_s=120)
    jobs = ratchet("train", "list", "--json", env=env).json["jobs"]
    rollout = ratchet("rollout", "status", "--json", env=env).json["rollout_id"]
    datasets = two_versions.run_dir / "data" / "datasets"
    return {
        "JOB": jobs[-1]["job_id"],
        "ROLLOUT": rollout,
        ".run/datasets/ID": str(next(datasets.rglob("train.jsonl")).parent),
        "assistant-v1.3": SECOND,
    }


def test_every_command_that_is_not_listed_ends_well(
    two_versions: Stack, names: dict[str, str], home: Path
) -> None:
    placeholder = re.compile("|".join(rf"(?<![\w/]){re.escape(name)}\b" for name in names))
    failed, ran = [], 0
    found = (one for page in sorted(DOCS.glob("*.md")) for one in commands(page))
    for command in dict.fromkeys(found):
        if not runs(command):
            continue
        text = placeholder.sub(lambda found: names[found[0]], command.text)
        ran += 1
        try:
            if command.language == "python":
                run_python(text, two_versions)
            else:
                run_bash(at_home(text, two_versions), two_versions, cwd=home, HOME=str(home))
        except AssertionError as problem:
            failed.append(f"docs/{command.page}: {problem}")
    assert not failed, f"{len(failed)} of {ran} failed:\n" + "\n\n".join(failed)
