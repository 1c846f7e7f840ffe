"""Documents are true: what they name exists, and what they claim has a test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

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


PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if not re.match(r"\d{4}-\d\d-\d\d", path.stem)  # dated reports are of their revision
)
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


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
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


def test_every_word_of_the_glossary_has_a_module() -> None:
    rows = [
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs" / "glossary.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:]
    words = [word for word, _, _ in rows]
    assert words == sorted(words, key=str.lower)
    assert all(re.search(r"`(services|shared)/[\w/]+\.(py|md)`", where) for _, _, where in rows)


def test_ten_questions_are_answered_by_a_path() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Ten questions")[2]
    answers = re.split(r"^\d+\. (?=\*\*)", text, flags=re.MULTILINE)[1:]
    assert len(answers) == 10
    for answer in answers:
        assert re.match(r"\*\*[^*]+\?\*\*", answer)
        assert any(is_path(word) and exists(word) for word in re.findall(r"`([^`\s]+)`", answer))
