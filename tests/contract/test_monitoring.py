"""Rules are valid, each alert is tested both ways and has its runbook, promtool agrees."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.k8s.monitoring import generate

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "k8s" / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules" / "ratchet.yml").read_text())
TESTS = yaml.safe_load((MONITORING / "tests" / "ratchet.yml").read_text())
ALERTS: list[dict[str, Any]] = [
    rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
]


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    promtool("check", "rules", str(MONITORING / "rules" / "ratchet.yml"))
    assert "SUCCESS" in promtool("test", "rules", str(MONITORING / "tests" / "ratchet.yml"))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_fires_and_stays_silent_in_a_test(alert: dict[str, Any]) -> None:
    cases = [case for test in TESTS["tests"] for case in test.get("alert_rule_test", [])]
    expected = [case["exp_alerts"] for case in cases if case["alertname"] == alert["alert"]]
    assert any(expected), "no test in which it fires"
    assert not all(expected), "no test in which it stays silent"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook_section(alert: dict[str, Any]) -> None:
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}
    assert alert["labels"]["severity"] in {"page", "ticket"}


def test_an_alert_calls_people_where_a_rollout_does() -> None:
    assert any("ratchet_rollout_needs_person" in alert["expr"] for alert in ALERTS)


@pytest.mark.parametrize("name", sorted(generate.BOARDS))
def test_dashboards_are_what_their_code_says(name: str) -> None:
    path = generate.DASHBOARDS / f"{name}.json"
    assert path.read_text() == generate.text(name), "python -m deploy.k8s.monitoring.generate"


@pytest.mark.parametrize("name", sorted(generate.BOARDS))
def test_panels_do_not_overlap_and_say_what_they_show(name: str) -> None:
    panels = generate.dashboard(name)["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["title"] for panel in panels})
    assert all(panel["description"] and panel["targets"] for panel in panels)
