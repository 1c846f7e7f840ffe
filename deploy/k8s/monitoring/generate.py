"""Writes the Grafana dashboards and the runbooks' page: python -m deploy.k8s.monitoring.generate.

What the dashboards show is in `boards`. The page is what alerts link to where Prometheus serves it
(`--web.user-assets`).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from deploy.k8s.monitoring.boards import BOARDS
from deploy.k8s.monitoring.panels import Panel

ROOT = Path(__file__).parents[3]
DASHBOARDS = Path(__file__).parents[1] / "helm" / "ratchet" / "files" / "dashboards"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
RUNBOOKS_PAGE = Path(__file__).parent / "assets" / "runbooks.html"
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
VARIABLE = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "regex": "",
    "includeAll": False,
    "multi": False,
    "hide": 0,
}
STYLE = "body{font:1rem/1.5 system-ui;max-width:48rem;margin:2rem auto;padding:0 1rem}"


def dashboard(name: str) -> dict[str, Any]:
    """The Grafana model of a dashboard; its data source is a variable."""
    title, panels = BOARDS[name]
    others = {
        "type": "dashboards",
        "tags": ["ratchet"],
        "title": "Ratchet",
        "tooltip": "The other dashboards of Ratchet",
        "icon": "external link",
        "asDropdown": True,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }
    return {
        "uid": f"ratchet-{name}",
        "title": title,
        "tags": ["ratchet"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [others],
        "templating": {"list": [VARIABLE]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    across = COLUMNS // WIDTH
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.target is not None:
        steps = [{"color": "transparent", "value": None}, {"color": "red", "value": panel.target}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        # The axis reaches to the target; else its line is there only where the data cross it.
        reach = {"axisSoftMin": panel.target, "axisSoftMax": panel.target}
        defaults["custom"] = {"thresholdsStyle": {"mode": "dashed"}, **reach}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": number % across * WIDTH,
            "y": number // across * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def text(name: str) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"


def runbooks_page() -> str:
    """The runbooks as one page; each section has the anchor that its alert links to."""
    body = MarkdownIt().render(RUNBOOKS.read_text())
    body = re.sub(r"<h2>(\w+)</h2>", lambda m: f'<h2 id="{m[1].lower()}">{m[1]}</h2>', body)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Ratchet: runbooks</title>\n'
        f"<style>{STYLE}</style>\n{body}</html>\n"
    )


def main() -> int:
    """Write all dashboards and the page."""
    DASHBOARDS.mkdir(exist_ok=True)
    RUNBOOKS_PAGE.parent.mkdir(exist_ok=True)
    for name in BOARDS:
        (DASHBOARDS / f"{name}.json").write_text(text(name))
    RUNBOOKS_PAGE.write_text(runbooks_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
