"""Draws a dashboard: python -m tests.support.dashboards loop docs/images/dashboard-loop.png."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.k8s.monitoring.boards import BOARDS
from deploy.k8s.monitoring.generate import DASHBOARDS
from tests.support.dashboards import asked, draw, drawing_page, faults


def main() -> int:
    """Writes the picture of a dashboard; exit status 1 where one of its panels is wrong."""
    parser = argparse.ArgumentParser(prog="tests.support.dashboards", description=main.__doc__)
    parser.add_argument("dashboard", choices=BOARDS)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=10, help="how long a time it shows")
    parser.add_argument(
        "--to", type=datetime.fromisoformat, default=datetime.now(UTC), help="its end; else now"
    )
    options = parser.parse_args()
    start = options.to - timedelta(minutes=options.minutes)
    panels = json.loads((DASHBOARDS / f"{options.dashboard}.json").read_text())["panels"]
    series = [asked(panel, options.prometheus, start, options.to) for panel in panels]
    with tempfile.TemporaryDirectory() as folder, drawing_page(Path(folder)) as page:
        seen = draw(page, panels, series, start, options.to)
        page.screenshot(path=options.picture, full_page=True)
    found = faults(seen, series)
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
