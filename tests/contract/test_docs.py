"""Documents are true: what they name exists, and what they claim has a test."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from services.cli.__main__ import app
from shared.kafka.topics import load_topics
from tests.e2e.documented import commands

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "docs" / "requirements.md"
STATES = {"built", "partial", "not built"}
ROW = re.compile(r"^\| (?P<id>[A-Z]\d+) \| .* \| (?P<state>[a-z ]+) \| (?P<shown>.*) \|$")
ROWS = [
    (number, found)
    for number, line in enumerate(REQUIREMENTS.read_text().splitlines(), 1)
    if (found := ROW.match(line))
]


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_requirement_is_listed_once() -> None:
    text = REQUIREMENTS.read_text()
    ids = [found["id"] for _, found in ROWS]
    assert len(ids) == len(set(ids))
    assert len(ids) == sum(line.startswith("| ") for line in text.splitlines()) - text.count(
        "| id |"
    )
    sections = re.findall(r"^## ([A-Z])\. ", text, re.MULTILINE)
    assert sections == list(dict.fromkeys(name[0] for name in ids))
    for section in sections:
        numbers = [int(name[1:]) for name in ids if name[0] == section]
        assert numbers == list(range(1, len(numbers) + 1)), section


@pytest.mark.parametrize("row", [found for _, found in ROWS], ids=lambda row: row["id"])
def test_a_requirement_has_a_state_and_the_tests_that_show_it(row: re.Match[str]) -> None:
    assert row["state"] in STATES
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row["shown"])
    assert len(named) == row["shown"].count("`tests/")
    assert bool(named) == (row["state"] != "not built")
    assert ("Missing: " in row["shown"]) == (row["state"] == "partial")
    for path, function in named:
        assert function.startswith("test_")
        assert function in functions(ROOT / path), f"{path}::{function}"


def test_every_client_has_a_test() -> None:
    rows = (ROOT / "docs/clients.md").read_text().split("\n\n")[2].splitlines()[2:]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, function in named:
            assert function in functions(ROOT / path), f"{path}::{function}"


ALL_PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(
            page
            for folder in ROOT.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
            for page in folder.rglob("*.md")
        ),
    ]
)
PAGES = [
    page
    for page in ALL_PAGES
    if not re.match(r"\d{4}-\d\d-\d\d", page.stem)  # dated reports are of their revision
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NOT_BUILT = " *(not built)*"
TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
MAX_COLUMNS = 120


def outside_fences(page: Path) -> list[str]:
    """The page's lines, those of code fences empty, so that numbers stay."""
    lines, fenced = [], False
    for line in page.read_text().splitlines():
        fence = line.lstrip().startswith("```")
        lines.append("" if fenced or fence else line)
        fenced ^= fence
    return lines


def is_path(word: str) -> bool:
    """A path inside the repository, by its first part."""
    return bool(re.fullmatch(r"[\w.<>*-]+(/[\w.<>*+-]*)+|[\w-]+\.(md|toml|yml)", word)) and (
        word.partition("/")[0] in TOP
    )


def exists(word: str) -> bool:
    pattern = re.sub(r"<\w+>|NNNN[\w-]*", "*", word).rstrip("/")
    return any(ROOT.glob(pattern))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_named_exists_unless_it_is_said_not_to(page: Path) -> None:
    text = "\n".join(outside_fences(page))
    wrong = []
    for found in re.finditer(r"`([^`\s]+)`", text):
        word = found[1].partition("::")[0]
        if is_path(word) and exists(word) == text.startswith(NOT_BUILT, found.end()):
            wrong.append(word)
    assert not wrong


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit(page: Path) -> None:
    long = [
        number
        for number, line in enumerate(outside_fences(page), 1)
        if len(line) > MAX_COLUMNS and not line.startswith("|")
    ]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_resolve(page: Path) -> None:
    text = "\n".join(outside_fences(page))
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings
            }


def test_no_entry_stands_twice_in_the_changelog() -> None:
    told = (ROOT / "CHANGELOG.md").read_text()
    entries = re.findall(r"^- .*(?:\n  .*)*", told, re.MULTILINE)
    assert len(entries) > 50
    assert sorted(entries) == sorted(set(entries))


def test_the_readme_shows_the_product_that_the_examples_have() -> None:
    assert (ROOT / "examples" / "shop.py").read_text() in (ROOT / "README.md").read_text()


def test_every_word_of_the_glossary_has_a_module() -> None:
    rows = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs" / "glossary.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:]
    words = [word for word, _, _ in rows]
    assert words == sorted(words, key=str.lower)
    assert all(re.search(r"`(services|shared)/[\w/]+(\.py|\.md|/)`", where) for _, _, where in rows)


def test_ten_questions_are_answered_by_a_path() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Ten questions")[2]
    answers = re.split(r"^\d+\. (?=\*\*)", text, flags=re.MULTILINE)[1:]
    assert len(answers) == 10
    for answer in answers:
        assert re.match(r"\*\*[^*]+\?\*\*", answer)
        assert any(is_path(word) and exists(word) for word in re.findall(r"`([^`\s]+)`", answer))


@cache
def exported() -> dict[str, tuple[str, ...] | None]:
    """Each metric that the code exports, with its labels where they are written out."""
    found: dict[str, tuple[str, ...] | None] = {}
    for path in [*ROOT.glob("services/**/*.py"), *ROOT.glob("shared/**/*.py")]:
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            kind = call.func.id if isinstance(call.func, ast.Name) else ""
            first = call.args[0] if call.args else None
            if not re.match("Counter|Gauge|Histogram", kind) or not isinstance(first, ast.Constant):
                continue
            name = str(first.value)
            if kind.startswith("Counter") and not name.endswith("_total"):
                name += "_total"
            labels = next((one.value for one in call.keywords if one.arg == "labels"), None)
            labels = labels or (call.args[2] if len(call.args) > 2 else ast.Tuple([]))
            labels = constants.get(labels.id, labels) if isinstance(labels, ast.Name) else labels
            try:
                found[name] = tuple(ast.literal_eval(labels))
            except ValueError:
                found[name] = None
    return found


def metric(series: str) -> str:
    """The metric of a series: a histogram's without its suffix."""
    base = re.sub("_(bucket|count|sum)$", "", series)
    return base if series not in exported() and base in exported() else series


def contract_metrics() -> dict[str, tuple[str, ...]]:
    section = (ROOT / "docs" / "design.md").read_text().partition("\n## 10. ")[2]
    found: dict[str, tuple[str, ...]] = {}
    for line in section.splitlines():
        if line.startswith("| `ratchet_"):
            names, labels, _ = line.strip("| ").split(" | ")
            labels = re.sub(r" \([^)]*\)", "", labels)
            for name in re.findall(r"`(ratchet_\w+)`", names):
                found[name] = () if labels == "–" else tuple(labels.split(", "))
    return found


def test_every_metric_of_the_design_is_exported_with_its_labels() -> None:
    assert contract_metrics()
    for name, labels in contract_metrics().items():
        assert name in exported()
        known = exported()[name]
        assert known is None or sorted(known) == sorted(labels), name


def test_every_metric_that_another_part_reads_is_in_the_design() -> None:
    readers = [
        *ROOT.glob("deploy/k8s/helm/ratchet/files/rules/*.yml"),
        ROOT / "deploy" / "k8s" / "monitoring" / "boards.py",
        *(
            path
            for path in [*ROOT.glob("services/cli/*.py"), *ROOT.glob("services/rollout/*.py")]
            if path.name != "metrics.py"
        ),
    ]
    read = {
        metric(name) for path in readers for name in re.findall(r"\bratchet_\w+", path.read_text())
    }
    assert read & set(exported()) <= set(contract_metrics())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_metric_named_is_exported(page: Path) -> None:
    for name in re.findall(r"`(ratchet_\w+[a-z])`", page.read_text()):
        assert metric(name) in exported()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_named_exists_with_its_options(page: Path) -> None:
    text = page.read_text()
    lines = re.findall(r"`(ratchet [a-z][^`]*)`", text)
    lines += [one.text for one in commands(page) if one.text.startswith("ratchet ")]
    for line in lines:
        command: Any = typer.main.get_command(app)
        words = shlex.split(re.sub(r"…|<[^>]*>", "X", line), comments=True)[1:]
        while hasattr(command, "commands"):
            if command.invoke_without_command and (not words or words[0].startswith("-")):
                break
            assert words, line
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--json"}, line


def test_the_topics_of_the_design_are_those_declared() -> None:
    section = (ROOT / "docs" / "design.md").read_text().partition("\n## 4. ")[2]
    table = "\n".join(
        line for line in section.partition("\n## 5. ")[0].splitlines() if line[:1] == "|"
    )
    cells = [row.split(" | ")[0] for row in table.splitlines()]
    named = {
        f"ratchet.{name}"
        for cell in cells
        for name, mark in re.findall(r"`([^`]+)`( \*\(not built\)\*)?", cell)
        if not mark
    }
    assert named == {topic.name for topic in load_topics()}


def test_every_decision_has_its_sections_and_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = " ".join((folder / "README.md").read_text().split())
    for page in sorted(folder.glob("[0-9]*.md")):
        text = page.read_text()
        head = re.match(r"# (.+)\n\n- Status: (.+)\n- Date: (.+)\n\n", text)
        assert head is not None, page.name
        title, status, date = head.groups()
        assert f"- {page.name[:4]} [{title}]({page.name})" in index
        assert re.fullmatch(r"proposed|accepted|superseded by \d{4}", status)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
        sections = ["Context", "Options considered", "Outcome", "Consequences"]
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sections


def test_every_runbook_says_what_was_done_how_to_confirm_what_to_do_and_undo() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^- \*\*(.*?)[:,]\*\*", section, re.MULTILINE) == [
            "Already done",
            "Confirm",
            "Do",
            "Undo",
        ]
        assert "`ratchet " in section, section.splitlines()[0]
