"""`make verify`: the tests that take hours, one after the other, with a report at the end.

What passed is kept under `.run/verify` for the present revision, so that a stopped run goes on
where it was. The report in `docs/verify/` is dated and names revision, durations and outcomes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from deploy.local.processes import ROOT

STATE = ROOT / ".run/verify"
REPORTS = ROOT / "docs/verify"
_PYTEST = (sys.executable, "-m", "pytest", "-m", "verify", "-p", "no:cacheprovider")
_NOTHING_COLLECTED = 5
PROPERTIES = "every property test with 1,000 examples"
_PROPERTIES = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "hypothesis"),
    *("--hypothesis-profile", "thorough", "--timeout", "3600", "tests/unit", "tests/contract"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """How one test went, and the figures that it recorded (`record_property`)."""

    test: str
    passed: bool
    duration_s: float
    ended: str
    figures: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Runs what has not passed yet; exit status 1 when anything fails."""
    parser = argparse.ArgumentParser(prog="make verify", description=main.__doc__)
    parser.add_argument("--again", action="store_true", help="run also what passed already")
    parser.add_argument("tests", nargs="*", help="only tests whose id contains one of these")
    options = parser.parse_args()

    revision = _revision()
    STATE.mkdir(parents=True, exist_ok=True)
    state = STATE / f"{revision}.json"
    results = {} if options.again else _load(state)
    tests = [
        test
        for test in [PROPERTIES, *_collected()]
        if not options.tests or any(part in test for part in options.tests)
    ]
    if not tests:
        sys.exit("verify: no test is marked verify and has such an id")
    for number, test in enumerate(tests, start=1):
        if test in results and results[test].passed:
            print(f"verify: [{number}/{len(tests)}] passed before: {test}")
            continue
        print(f"verify: [{number}/{len(tests)}] {test}", flush=True)
        begun = time.monotonic()
        command = _PROPERTIES if test == PROPERTIES else (*_PYTEST, "-q", test)
        figures = STATE / "figures.xml"
        figures.unlink(missing_ok=True)
        status = subprocess.run(
            [*command, "--junitxml", str(figures), "-o", "junit_family=xunit1"],
            cwd=ROOT,
            check=False,
        ).returncode
        results[test] = Result(
            test,
            passed=status == 0,
            duration_s=time.monotonic() - begun,
            ended=datetime.now(UTC).isoformat("T", "seconds"),
            figures=_figures(figures),
        )
        _save(state, results)
    report = _report(revision, [results[test] for test in tests])
    failed = sum(not results[test].passed for test in tests)
    print(f"verify: {len(tests) - failed} passed, {failed} failed; report: {report}")
    return 1 if failed else 0


def _collected() -> list[str]:
    command = [*_PYTEST, "--collect-only", "-q", "-p", "no:randomly"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode not in (0, _NOTHING_COLLECTED):
        sys.exit(f"verify: the tests cannot be collected:\n{listed.stdout}{listed.stderr}")
    return [line for line in listed.stdout.splitlines() if "::" in line]


def _revision() -> str:
    """The commit, and `-dirty` where anything but the reports differs from it."""
    commit = _git("describe", "--always", "--abbrev=12", "--exclude=*")
    changed = _git("status", "--porcelain", "--", ".", ":!docs/verify")
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _load(state: Path) -> dict[str, Result]:
    if not state.exists():
        return {}
    return {row["test"]: Result(**row) for row in json.loads(state.read_text())}


def _save(state: Path, results: dict[str, Result]) -> None:
    whole = state.with_suffix(".new")
    whole.write_text(json.dumps([asdict(result) for result in results.values()], indent=1))
    whole.replace(state)


def _figures(path: Path) -> dict[str, str]:
    """What the tests recorded of themselves; nothing where they were killed.

    Hypothesis records the statistics of every property, which say nothing to a reader.
    """
    if not path.exists():
        return {}
    properties = ET.parse(path).iter("property")
    return {
        one.attrib["name"]: one.attrib["value"]
        for one in properties
        if not one.attrib["name"].startswith("hypothesis-")
    }


def _report(revision: str, results: list[Result]) -> Path:
    today = datetime.now(UTC).date().isoformat()
    where = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    REPORTS.mkdir(parents=True, exist_ok=True)
    report = REPORTS / f"{today}.md"
    report.write_text(report_text(results, f"Revision {revision}, {where}", today))
    return report.relative_to(ROOT)


def report_text(results: list[Result], where: str, today: str) -> str:
    """The report in Markdown: what it came to in a line, then the tests by their files."""
    failed = [result.test for result in results if not result.passed]
    hours, minutes = divmod(round(sum(result.duration_s for result in results) / 60), 60)
    lines = [
        f"# Long verification, {today}",
        "",
        f"{where}. Made by `make verify`.",
        "",
        f"{len(results) - len(failed)} of {len(results)} tests passed, in {hours} h {minutes} min"
        f"{'; these failed:' if failed else '.'}",
        *(["", *(f"- `{test}`" for test in failed)] if failed else []),
    ]
    for file, tests in groupby(results, lambda result: result.test.partition("::")[0]):
        lines += [
            "",
            f"## {file}",
            "",
            "| test | outcome | minutes | figures |",
            "|---|---|---:|---|",
        ]
        for one in tests:
            name = f"`{one.test.partition('::')[2]}`" if "::" in one.test else ""
            outcome = "passed" if one.passed else "**failed**"
            figures = "; ".join(f"{figure} {value}" for figure, value in one.figures.items())
            lines.append(f"| {name} | {outcome} | {one.duration_s / 60:.1f} | {figures} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("verify: stopped; run it again and it goes on from here")
