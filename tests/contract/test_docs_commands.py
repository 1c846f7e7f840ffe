"""Every command of the documents is run by `make verify`, or listed with the reason why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.documented import DOCS, NOT_RUN, ON_CLUSTER, RUN, commands, runs

PAGES = sorted(DOCS.glob("*.md"))
FOUND = [command for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run_or_listed(page: Path) -> None:
    for command in commands(page):
        runs(command)


@pytest.mark.parametrize("beginning", [*RUN, *ON_CLUSTER, *NOT_RUN])
def test_every_entry_is_of_a_command(beginning: str) -> None:
    assert any(command.text.startswith(beginning) for command in FOUND)


def test_no_entry_is_in_two() -> None:
    entries = [*RUN, *ON_CLUSTER, *NOT_RUN]
    assert len(entries) == len(set(entries))


@pytest.mark.parametrize("reason", sorted(set(NOT_RUN.values())))
def test_a_test_that_a_reason_names_exists(reason: str) -> None:
    for name in re.findall(r"[\w/]+\.py", reason):
        assert [*(DOCS.parent / "tests").rglob(name.removeprefix("tests/"))], name


@pytest.mark.parametrize(
    "beginning", [beginning for beginning in NOT_RUN if beginning.startswith("ratchet ")]
)
def test_a_command_of_ours_that_is_not_run_here_is_run_by_a_test(beginning: str) -> None:
    assert re.search(r"test_\w+\.py", NOT_RUN[beginning]), NOT_RUN[beginning]


def test_a_command_over_several_lines_is_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\ncurl -d '{\n}'  # sent\n\n# alone\na \\\n  b\nfor x in 1; do\n  y\ndone\n```\n\n"
        "- **Confirm:** `ratchet\n  status`; `arm`.\n- **Do:** `ratchet down`.\n"
    )
    assert [command.text for command in commands(page)] == [
        "curl -d '{\n}'  # sent",
        "a \\\n  b",
        "for x in 1; do\n  y\ndone",
        "ratchet status",
    ]
    with pytest.raises(KeyError, match="NOT_RUN has: a"):
        runs(commands(page)[1])
