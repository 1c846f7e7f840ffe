"""Dashboards drawn by Grafana's own components, with made-up lines; with real ones in tests/e2e."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Error, Page

from deploy.k8s.monitoring.boards import BOARDS
from deploy.k8s.monitoring.generate import dashboard
from tests.support.dashboards import Series, draw, drawing_page, faults

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(minutes=5)
ERRORS = next(
    panel for panel in dashboard("loop")["panels"] if panel["title"] == "Error share by version"
)


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with drawing_page(tmp_path_factory.mktemp("drawing")) as page:
        yield page


def line(name: str, level: float = 0.001) -> Series:
    """A line far beneath every target."""
    times = range(int(START.timestamp()) + 60, int(END.timestamp()), 15)
    return Series(name, [(1000 * time, level * (1 + time % 2)) for time in times])


def found(canvas: Page, panels: list[dict[str, Any]], *names: str) -> list[str]:
    series = [
        [line(name) for name in names or [target["refId"] for target in panel["targets"]]]
        for panel in panels
    ]
    return faults(draw(canvas, panels, series, START, END), series)


def changed(**fields: Any) -> list[dict[str, Any]]:
    """A panel with a target, with other fields of its `custom` ones."""
    panel = copy.deepcopy(ERRORS)
    panel["fieldConfig"]["defaults"]["custom"] |= fields
    return [panel]


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_is_drawn_with_its_lines_names_and_target(canvas: Page, name: str) -> None:
    assert found(canvas, dashboard(name)["panels"]) == []


@pytest.mark.parametrize(
    ("panels", "names", "lack"),
    [
        (changed(lineWidth=0, showPoints="never"), ("v1",), "drawn empty, though there is data"),
        (changed(axisSoftMin=None, axisSoftMax=None), ("v1",), "the target is out of sight"),
        (changed(), ("v1", " "), "the legend does not name ' '"),
    ],
)
def test_what_a_panel_lacks_is_found(
    canvas: Page, panels: list[dict[str, Any]], names: tuple[str, ...], lack: str
) -> None:
    assert found(canvas, panels, *names) == [f"{ERRORS['title']}: {lack}"]


@pytest.mark.parametrize(
    ("field", "value"), [("type", "graff"), ("transformations", []), ("unit", "percentt")]
)
def test_what_grafana_or_this_does_not_know_is_refused(
    canvas: Page, field: str, value: object
) -> None:
    (panel,) = changed()
    place = panel["fieldConfig"]["defaults"] if field == "unit" else panel
    place[field] = value
    with pytest.raises(Error, match=str(value or field)):
        found(canvas, [panel])
