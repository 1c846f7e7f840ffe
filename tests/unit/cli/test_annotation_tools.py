"""`ratchet annotations push` and `pull`: forms of other tools, a server of straw, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli import annotation_tools, label_studio
from services.cli.annotation_forms import (
    SidedItem,
    ToolLabel,
    argilla_labels,
    argilla_record,
    label_studio_labels,
    label_studio_task,
)
from services.cli.errors import CliError, Exit
from services.cli.pair_formats.pair import BadPair
from shared.contracts.events.annotations import LABELS
from tests.support.command import Ran, ratchet_here

PREFERENCE = {
    "item_id": "i1", "kind": "preference", "state": "open", "category": "medical",
    "guidelines": "", "messages": [{"role": "user", "content": "May I take both?"}],
    "answers": ["Ask your doctor.", "Yes."], "missing": 2,
}  # fmt: skip
RATING = {**PREFERENCE, "item_id": "i2", "kind": "rating", "answers": ["Yes."]}

Run = Callable[..., Ran]


def label_studio_said(task: dict[str, Any], kind: str, label: str, who: object) -> dict[str, Any]:
    """A task as the server exports it, with one annotation."""
    value = {"rating": int(label)} if kind == "rating" else {"choices": [label]}
    result = {
        "type": "rating" if kind == "rating" else "choices",
        "from_name": "label",
        "to_name": "answer1",
        "value": value,
    }
    given = {"completed_by": who, "was_cancelled": False, "result": [result]}
    return {"id": 3, **task, "annotations": [given]}


def argilla_said(record: dict[str, Any], kind: str, label: str, who: object) -> dict[str, Any]:
    sides = {"left": "response1", "right": "response2"}
    value = int(label) if kind == "rating" else sides.get(label, label)
    return {**record, "responses": {kind: [{"value": value, "user_id": who}]}}


@given(st.data(), st.booleans())
def test_a_label_comes_back_as_it_was_given(data: st.DataObject, turned: bool) -> None:
    kind = data.draw(st.sampled_from(sorted(LABELS)))
    label = data.draw(st.sampled_from(LABELS[kind]))
    shown = SidedItem(PREFERENCE if kind == "preference" else RATING, turned)
    task = json.loads(json.dumps(label_studio_task(shown)))
    item_id = shown.item["item_id"]
    for who in (7, {"id": 7, "email": "rosa@example.org"}):
        found = list(label_studio_labels(label_studio_said(task, kind, label, who)))
        assert found == [ToolLabel(item_id, "label-studio-7", label, turned)]
    record = json.loads(json.dumps(argilla_record(shown)))
    found = list(argilla_labels(argilla_said(record, kind, label, "u7")))
    assert found == [ToolLabel(item_id, "argilla-u7", label, turned)]


def test_sides_are_as_told_and_no_version_is_named() -> None:
    for turned, left in ((False, "Ask your doctor."), (True, "Yes.")):
        shown = SidedItem({**PREFERENCE, "versions": ["assistant-v1.0", "assistant-v1.1"]}, turned)
        task, record = label_studio_task(shown), argilla_record(shown)
        assert (task["data"]["answer1"], record["fields"]["response1"]) == (left, left)
        assert "assistant-v1" not in json.dumps([task, record])


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({}, "data: must be an object"),
        ({"data": {"text": "someone else's"}}, "data.item: must be the item's id"),
        ({"data": {"item": "i1", "turned": "no"}}, "data.turned: must be true or false"),
        ({"data": {"item": "i1"}, "annotations": {"a": 1}}, "annotations: must be a list"),
        ({"data": {"item": "i1"}, "annotations": [{"result": []}]}, "neither choices"),
        (
            {
                "data": {"item": "i1"},
                "annotations": [{"result": [{"type": "choices", "value": {"choices": []}}]}],
            },
            "must be one choice",
        ),
    ],
)
def test_a_task_that_is_none_of_ours_is_told(task: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPair, match=said):
        list(label_studio_labels(task))


def test_what_was_cancelled_or_is_a_draft_gives_no_label() -> None:
    task = label_studio_said(
        label_studio_task(SidedItem(PREFERENCE, False)), "preference", "tie", 1
    )
    task["annotations"][0]["was_cancelled"] = True
    assert list(label_studio_labels(task)) == []
    record = argilla_said(argilla_record(SidedItem(PREFERENCE, False)), "preference", "tie", "u1")
    record["responses"]["preference"][0]["status"] = "draft"
    assert list(argilla_labels(record)) == []


class StrawTools:
    """The feedback service and a Label Studio server, as far as the command asks them."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.labels: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []

    def ask(self, _: Any, __: str, method: str, path: str, **given: Any) -> Any:
        if method == "POST":
            item_id = path.split("/")[3]
            if item_id == "settled":
                raise CliError("feedback refused (409): your time is over", Exit.refused)
            self.labels.append((item_id, given["body"]))
            return {}
        if path == "/v1/annotations":
            return {"items": [PREFERENCE, RATING, {**PREFERENCE, "item_id": "full", "missing": 0}]}
        return {"i1": PREFERENCE, "i2": RATING}[path.rsplit("/", 1)[1]]

    def fetch(self, settings: Any, url: str, **given: Any) -> tuple[int, str]:
        assert settings.api_key == "", "Ratchet's key is not for another server"
        self.headers.append(given["headers"])
        path = url.partition("//")[2].partition("/")[2].partition("?")[0]
        match given["method"], path:
            case "POST", "api/token/refresh":
                return 200, json.dumps({"access": "short.lived.one"})
            case "GET", "api/projects/4/export":
                return 200, json.dumps(self.tasks)
            case "POST", "api/projects/4/import":
                self.tasks += given["body"]
                return 201, json.dumps({"task_count": len(given["body"])})
            case _:
                return 404, '{"detail": "Not found."}'


@pytest.fixture
def straw(monkeypatch: pytest.MonkeyPatch) -> StrawTools:
    found = StrawTools()
    monkeypatch.setattr(annotation_tools, "ask", found.ask)
    monkeypatch.setattr(label_studio, "fetch", found.fetch)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "legacy")
    monkeypatch.setenv("RATCHET_API_KEY", "rk-secret")
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *given: ratchet_here(
        "annotations", *given, monkeypatch=monkeypatch, capsys=capsys
    )


AT = ("--url", "http://studio:8080", "--project", "4")


def test_open_items_are_pushed_once_and_their_labels_pulled(straw: StrawTools, run: Run) -> None:
    ran = run("push", "label-studio", *AT)
    assert (ran.status, ran.err) == (0, "")
    assert "1 items to project 4; 0 were there" in ran.out
    again = run("push", "label-studio", *AT)
    assert "0 items to project 4; 1 were there" in again.out
    assert "ratchet annotations add" in again.out
    (task,) = straw.tasks
    straw.tasks = [label_studio_said(task, "preference", "left", 7)]
    ran = run("pull", "label-studio", *AT)
    assert "stored or known" in ran.out
    turned = task["data"]["turned"]
    body = {"annotator": "label-studio-7", "label": "left", "by": "person", "turned": turned}
    assert straw.labels == [("i1", body)]
    assert all(one == {"authorization": "Token legacy"} for one in straw.headers)


def test_a_personal_access_token_is_exchanged(
    straw: StrawTools, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.personal.token")
    assert run("push", "label-studio", *AT).status == 0
    assert straw.headers[0] == {}
    assert straw.headers[1:] == [{"authorization": "Bearer short.lived.one"}] * 2


def test_what_is_refused_is_told_and_the_rest_is_stored(
    straw: StrawTools, run: Run, tmp_path: Path
) -> None:
    tasks = [
        label_studio_said(label_studio_task(SidedItem(PREFERENCE, False)), "preference", "tie", 1),
        {"data": {"text": "someone else's"}, "annotations": []},
        label_studio_said(
            label_studio_task(SidedItem({**PREFERENCE, "item_id": "settled"}, False)),
            "preference", "left", 2,
        ),
    ]  # fmt: skip
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks))
    ran = run("pull", "label-studio", "--file", str(file), "--json")
    assert ran.json == {
        "stored": 1,
        "refused": 2,
        "problems": [
            "task 2: data.item: must be the item's id, as `annotations push` wrote it",
            "item settled, label-studio-2: feedback refused (409): your time is over",
        ],
    }
    assert [item for item, _ in straw.labels] == ["i1"]


def test_argilla_goes_by_files(straw: StrawTools, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    assert "1 items to" in run("push", "argilla", "--file", str(file), "--kind", "rating").out
    (record,) = json.loads(file.read_text())
    file.write_text(json.dumps([argilla_said(record, "rating", "4", "u1")]))
    assert run("pull", "argilla", "--file", str(file)).status == 0
    assert [body["label"] for _, body in straw.labels] == ["4"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("label-studio",), "give either --url and --project, or --file"),
        (("label-studio", *AT, "--file", "x"), "give either --url and --project, or --file"),
        (("label-studio", "--url", "http://studio"), "--project: give the number"),
        (("label-studio", "--url", "studio:8080", "--project", "4"), "must begin with http://"),
        (("argilla", *AT), "argilla is reached by its files; give --file"),
        (("label-studio", *AT[:2], "--project", "5"), "refused GET /api/projects/5/export (404)"),
    ],
)
def test_what_is_lacking_is_named(
    straw: StrawTools, run: Run, given: tuple[str, ...], said: str
) -> None:
    for command in ("push", "pull"):
        ran = run(command, *given)
        assert ran.status != 0
        assert said in " ".join(ran.err.split())
    assert not straw.labels


def test_without_a_token_its_variable_is_named(
    straw: StrawTools, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    ran = run("push", "label-studio", *AT)
    assert ran.status == Exit.usage
    assert "LABEL_STUDIO_API_KEY is not set" in ran.err
    assert not straw.headers


@pytest.mark.parametrize("content", ["no JSON", "{}", "[1]"])
def test_a_file_that_is_no_export_is_refused(run: Run, tmp_path: Path, content: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(content)
    ran = run("pull", "argilla", "--file", str(file))
    assert ran.status == Exit.usage
    assert str(file) in " ".join(ran.err.split())


def test_the_interface_of_a_project_is_printed(run: Run) -> None:
    assert '<Choices name="label"' in run("labelling-config").out
    assert '<Rating name="label"' in run("labelling-config", "rating").out
    assert run("labelling-config", "ranking").status == Exit.usage
