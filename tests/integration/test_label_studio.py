"""Items of the annotation queue in a real Label Studio, and people's labels back as votes."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from tests.support.command import Ran, ratchet
from tests.support.environments import locked_environment
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_500)]

START_TIMEOUT_S = 600.0
"""It makes its database first."""
TOKEN = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = [
    {"version": "assistant-v1.0", "trace_id": "t0", "text": "Ask your doctor."},
    {"version": "assistant-v1.1", "trace_id": "t1", "text": "Yes."},
]
BETTER = "Ask your doctor."
ITEMS = 20
"""Enough for both orders of sides to be there by chance."""


class Studio:
    """Label Studio's HTTP API, as its page uses it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode() if body is not None else None,
            method=method,
            headers={"authorization": f"Token {TOKEN}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def answers(self) -> bool:
        try:
            self.ask("GET", "/api/projects")
        except OSError:
            return False
        return True

    def label(self, task: dict[str, Any]) -> None:
        """Choose the better answer where the task shows it."""
        side = "left" if task["data"]["answer1"] == BETTER else "right"
        result = {
            "type": "choices",
            "from_name": "label",
            "to_name": "answer1",
            "value": {"choices": [side]},
        }
        self.ask("POST", f"/api/tasks/{task['id']}/annotations", {"result": [result]})


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("label-studio")
    python = locked_environment("label-studio", folder / "venv")
    port = free_ports(["label-studio"])["label-studio"]
    command = [
        python.parent / "label-studio", "start", "--no-browser", "--internal-host", "127.0.0.1",
        "--port", str(port), "--data-dir", folder / "data",
        "--username", "rosa@example.org", "--password", "of-this-test-1",
    ]  # fmt: skip
    env = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "DEBUG": "false",
    }
    (folder / "data").mkdir()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    try:
        found = Studio(f"http://127.0.0.1:{port}")
        wait_until(
            lambda: found.answers() or server.poll() is not None, "Label Studio", START_TIMEOUT_S
        )
        assert server.poll() is None, (folder / "server.log").read_text()[-2_000:]
        yield found
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    plan = tmp_path_factory.mktemp("plan") / "plan.yaml"
    plan.write_text("model: assistant\nversions: [assistant-v1.0, assistant-v1.1]\n")
    with Stack(
        tmp_path_factory.mktemp("stack"),
        services=["feedback"],
        env={"RATCHET_FEEDBACK_VOTING_PLAN_FILE": str(plan)},
        ports="free",
        say=lambda _: None,
    ) as started:
        yield started


def command(stack: Stack, studio: Studio, *words: str, token: str = TOKEN) -> Ran:
    env = {
        **stack.environment(),
        "RATCHET_FEEDBACK_URL": f"http://{stack.address('feedback')}",
        "LABEL_STUDIO_API_KEY": token,
    }
    ran = ratchet("annotations", *words, env=env)
    assert ran.status == 0, ran.err + ran.out
    return ran


def test_items_are_labelled_there_and_settled_here(
    stack: Stack, studio: Studio, tmp_path: Path
) -> None:
    config = command(stack, studio, "labelling-config", "preference").out
    made = studio.ask("POST", "/api/projects", {"title": "Ratchet", "label_config": config})
    project = ("--url", studio.url, "--project", str(made["id"]))
    items = tmp_path / "items.jsonl"
    item = {"model": "assistant", "answers": ANSWERS, "raters": 1}
    lines = [
        {"item_id": f"i{number}", "prompt": f"May I take {number}?", **item}
        for number in range(ITEMS)
    ]
    items.write_text("\n".join(map(json.dumps, lines)))
    command(stack, studio, "add", str(items))

    pushed = command(stack, studio, "push", "label-studio", *project, "--json").json
    assert sorted(pushed["pushed"]) == sorted(one["item_id"] for one in lines)
    again = command(stack, studio, "push", "label-studio", *project, "--json").json
    assert again == {"pushed": [], "known": ITEMS}

    tasks = studio.ask("GET", f"/api/tasks?project={made['id']}&page_size=100")["tasks"]
    assert {task["data"]["turned"] for task in tasks} == {True, False}
    assert "assistant-v1" not in json.dumps([task["data"] for task in tasks])
    for task in tasks:
        studio.label(task)

    personal = studio.ask("POST", "/api/token/", {})["token"]
    for token in (TOKEN, personal):  # a label that is pulled again is the same label
        pulled = command(
            stack, studio, "pull", "label-studio", *project, "--json", token=token
        ).json
        assert pulled == {"stored": ITEMS, "refused": 0, "problems": []}
    listed = command(stack, studio, "list", "--state", "settled", "--json").json
    assert len(listed) == ITEMS
    assert {one["outcome"] for one in listed} == {"left"}, "the first answer of each item"
    assert {label["annotator"] for one in listed for label in one["labels"]} == {"label-studio-1"}
