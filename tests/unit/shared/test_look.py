"""Pages of all services have one look: colours are in one stylesheet, which each page links first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.http.look import LOOK

SERVICES = Path(__file__).parents[3] / "services"
SHEETS = sorted(SERVICES.rglob("*.css"))
PAGES = sorted(path for path in SERVICES.rglob("*.html") if 'rel="stylesheet"' in path.read_text())
NAME = re.compile(r"(?<![\w-])--[\w-]+")


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda path: path.name)
def test_a_page_s_own_sheet_takes_its_colours_from_the_common_one(sheet: Path) -> None:
    text = sheet.read_text()
    assert not re.findall(r"#[0-9a-f]{3,8}\b(?=[^{]*;)|rgba?\(|hsla?\(", text)
    assert not re.findall(r":root|--[\w-]+:", text)
    defined = set(re.findall(r"(--[\w-]+):", LOOK.read_text()))
    assert set(NAME.findall(text)) <= defined


def test_every_colour_is_used() -> None:
    defined = set(re.findall(r"(--[\w-]+):", LOOK.read_text()))
    used = {
        name
        for path in (LOOK, *SHEETS)
        for name in re.findall(r"var\((--[\w-]+)", path.read_text())
    }
    assert used == defined


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_each_page_links_the_common_sheet_before_its_own(page: Path) -> None:
    first, *own = re.findall(r'<link rel="stylesheet" href="([^"]+)"', page.read_text())
    assert first.endswith("look.css")
    assert own
