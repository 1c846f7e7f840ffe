"""Rules are valid, each alert is tested both ways and has its runbook, promtool agrees."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.k8s.monitoring import generate
from deploy.k8s.monitoring.boards import BOARDS

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "k8s" / "monitoring"
RULES_FILE = ROOT / "deploy" / "k8s" / "helm" / "ratchet" / "files" / "rules" / "ratchet.yml"
RULES = yaml.safe_load(RULES_FILE.read_text())
TEST_FILES = sorted((MONITORING / "tests").glob("*.yml"))
TESTS = [test for path in TEST_FILES for test in yaml.safe_load(path.read_text())["tests"]]
ALERTS: list[dict[str, Any]] = [
    rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
]
EXPRESSIONS = {
    **{
        rule.get("alert") or " ".join((rule["record"], *rule.get("labels", {}).values())): rule[
            "expr"
        ]
        for group in RULES["groups"]
        for rule in group["rules"]
    },
    **{
        f"{board}: {panel.title}": query
        for board, (_, panels) in BOARDS.items()
        for panel in panels
        for query, _ in panel.queries
    },
}
RATIOS = {name: text for name, text in EXPRESSIONS.items() if "/" in text}
ARM = 'model="m",version="v",arm="candidate",rollout="r"'
QUALITY = 'version="v",window="5m",figure="satisfaction",partition="0"'
REQUESTS = "ratchet_router_requests_total"
DURATION = "ratchet_router_request_duration_seconds"
SLOW = "ratchet_router_slow_requests_total"
SLO_WINDOWS = ("5m", "30m", "1h", "6h")
SCORES = f'{ARM},segment="",partition="0"'
SHARES: dict[str, tuple[str, str, bool, tuple[float, float]]] = {
    # ratio: what it counts, of how many, whether by rate, and its values for none and all of them
    "ratchet:errors:ratio_rate5m": (
        f'{REQUESTS}{{{ARM},outcome="timeout"}}',
        f"{DURATION}_count{{{ARM}}}",
        True,
        (0, 1),
    ),
    "ratchet:quality_ratio": (
        f"ratchet_quality_numerator{{{QUALITY}}}",
        f"ratchet_quality_denominator{{{QUALITY}}}",
        False,
        (0, 1),
    ),
    "rollout: Error share by arm": (
        f'{REQUESTS}{{{ARM},outcome="crash"}}',
        f"{DURATION}_count{{{ARM}}}",
        True,
        (0, 1),
    ),
    "rollout: Slow share by arm": (
        f"{SLOW}{{{ARM}}}",
        f"{DURATION}_count{{{ARM}}}",
        True,
        (0, 1),
    ),
    **{
        f"ratchet:slo:bad_ratio_rate{window} errors": (
            f'{REQUESTS}{{{ARM},outcome="timeout"}}',
            f"{DURATION}_count{{{ARM}}}",
            True,
            (0, 1),
        )
        for window in SLO_WINDOWS
    },
    **{
        f"ratchet:slo:bad_ratio_rate{window} latency": (
            f"{SLOW}{{{ARM}}}",
            f"{DURATION}_count{{{ARM}}}",
            True,
            (0, 1),
        )
        for window in SLO_WINDOWS
    },
    "inference: Loading an adapter, mean": (
        "ratchet_inference_adapter_load_seconds_sum",
        "ratchet_inference_adapter_load_seconds_count",
        False,
        (0, 1),
    ),
    "training: Room left on training's disks": (
        'ratchet_disk_free_bytes{job="training",directory="data"}',
        'ratchet_disk_size_bytes{job="training",directory="data"}',
        False,
        (0, 1),
    ),
    "kafka: Room left on disks": (
        'ratchet_disk_free_bytes{job="router",directory="data"}',
        'ratchet_disk_size_bytes{job="router",directory="data"}',
        False,
        (0, 1),
    ),
    "rollout: Satisfaction by arm, 1 to 5": (
        f"ratchet_satisfaction_sum_total{{{SCORES}}}",
        f"ratchet_satisfaction_count_total{{{SCORES}}}",
        False,
        (1, 5),
    ),
}


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    promtool("check", "rules", str(RULES_FILE))
    assert "SUCCESS" in promtool("test", "rules", *map(str, TEST_FILES))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_fires_and_stays_silent_in_a_test(alert: dict[str, Any]) -> None:
    cases = [case for test in TESTS for case in test.get("alert_rule_test", [])]
    expected = [case["exp_alerts"] for case in cases if case["alertname"] == alert["alert"]]
    assert any(expected), "no test in which it fires"
    assert not all(expected), "no test in which it stays silent"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook_section(alert: dict[str, Any]) -> None:
    address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    # Absolute where an alert is read: Prometheus serves the page below its own address.
    assert address == "{{ $externalURL }}/user/runbooks.html"
    assert anchor == alert["alert"].lower()
    assert f'<h2 id="{anchor}">' in generate.RUNBOOKS_PAGE.read_text()
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert "{{ $" in alert["annotations"]["summary"], "a summary says what and how much"


def test_the_page_of_runbooks_is_what_the_document_says_and_prometheus_serves_it() -> None:
    assert generate.RUNBOOKS_PAGE.read_text() == generate.runbooks_page(), (
        "python -m deploy.k8s.monitoring.generate"
    )
    folder = generate.RUNBOOKS_PAGE.parent.relative_to(ROOT)
    local = yaml.safe_load((ROOT / "deploy" / "local" / "processes.yaml").read_text())
    assert f"--web.user-assets=${{root}}/{folder}" in local["prometheus"]["command"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]
    (assets,) = (one for one in compose["volumes"] if one.startswith(f"./{folder}:"))
    assert f"--web.user-assets={assets.split(':')[1]}" in compose["command"]


def test_every_section_of_the_runbooks_has_its_alert() -> None:
    headings = re.findall(r"^## (.+)$", generate.RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted({alert["alert"] for alert in ALERTS})


def test_every_service_that_is_scraped_is_missed_where_it_is_gone() -> None:
    (down,) = (one for one in ALERTS if one["alert"] == "RatchetServiceDown")
    (jobs,) = re.findall(r'job=~"([^"]+)"', down["expr"])
    values = yaml.safe_load((ROOT / "deploy/k8s/helm/ratchet/values.yaml").read_text())
    assert sorted(jobs.split("|")) == sorted(values["services"])


def test_an_alert_calls_people_where_a_rollout_does() -> None:
    assert any("ratchet_rollout_needs_person" in alert["expr"] for alert in ALERTS)


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_dashboards_are_what_their_code_says(name: str) -> None:
    path = generate.DASHBOARDS / f"{name}.json"
    assert path.read_text() == generate.text(name), "python -m deploy.k8s.monitoring.generate"


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_panels_do_not_overlap_and_say_what_they_show(name: str) -> None:
    panels = generate.dashboard(name)["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["title"] for panel in panels})
    assert all(panel["description"] and panel["targets"] for panel in panels)


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_a_zero_in_place_of_no_series_has_a_name_in_the_legend(name: str) -> None:
    for panel in generate.dashboard(name)["panels"]:
        for target in panel["targets"]:
            nameless = "or vector(" in target["expr"] and "{{" in target["legendFormat"]
            assert not nameless, f"{panel['title']}: give it one by label_replace(vector(0), …)"


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_the_data_source_is_a_variable(name: str) -> None:
    model = generate.dashboard(name)
    (variable,) = model["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    sources = {
        part["datasource"]["uid"]
        for panel in model["panels"]
        for part in (panel, *panel["targets"])
    }
    assert sources == {f"${{{variable['name']}}}"}


def test_every_ratio_is_tested_with_nothing_none_and_all() -> None:
    assert SHARES.keys() == RATIOS.keys()


def test_a_ratio_shows_0_and_1_and_is_absent_without_data(tmp_path: Path) -> None:
    test = {
        "rule_files": [str(RULES_FILE)],
        "evaluation_interval": "1m",
        "tests": [
            _ratio_case(name, case)
            for name in SHARES
            for case in ("absent", "nothing", "none", "all")
        ],
    }
    path = tmp_path / "ratio.yml"
    path.write_text(yaml.safe_dump(test))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_a_share_that_a_service_tells_shows_0_and_1_and_is_absent_without_it(
    tmp_path: Path,
) -> None:
    told = {
        f"{board}: {panel.title}": (query, named)
        for board, (_, panels) in BOARDS.items()
        for panel in panels
        for query, _ in panel.queries
        if panel.unit == "percentunit" and "/" not in query and (named := _gauge(query))
    }
    assert {"loop: Weight of rollouts", "training: Reward model: accuracy"} <= told.keys()
    cases = [
        {
            "name": f"{name}, {shown}",
            "interval": "1m",
            "input_series": [{"series": series, "values": f"{value}x10"} for value in shown],
            "promql_expr_test": [
                {
                    "expr": f"sum({query})",
                    "eval_time": "8m",
                    "exp_samples": [{"labels": "{}", "value": value} for value in shown],
                }
            ],
        }
        for name, (query, series) in told.items()
        for shown in ([], [0], [1])
    ]
    path = tmp_path / "shares.yml"
    test = {"rule_files": [str(RULES_FILE)], "evaluation_interval": "1m", "tests": cases}
    path.write_text(yaml.safe_dump(test))
    assert "SUCCESS" in promtool("test", "rules", str(path))


def _gauge(query: str) -> str:
    """A series that a query takes a gauge of; empty where it takes a recording rule's, a ratio."""
    (name, selector) = re.findall(r"(ratchet[a-z_:]+)(?:\{([^}]*)\})?", query)[0]
    chosen = re.sub(r'=~"([^|"]+)[^"]*"', r'="\1"', selector)
    return "" if ":" in name else f"{name}{{{chosen}}}"


def _ratio_case(name: str, case: str) -> dict[str, Any]:
    part, whole, by_rate, (at_none, at_all) = SHARES[name]
    per_minute = {"absent": (0, 0), "nothing": (0, 0), "none": (0, 60), "all": (60, 60)}[case]
    shown = {"none": [at_none], "all": [at_all]}.get(case, [])
    values = [f"0+{n}x10" if by_rate else f"{n}x10" for n in per_minute]
    series = [
        {"series": one, "values": given}
        for one, given in zip((part, whole), values, strict=True)
        if case != "absent"
    ]
    query = EXPRESSIONS[name].replace("$__rate_interval", "5m")
    # Labels are the other tests' matter: a sum leaves the value alone, and none of nothing.
    samples = [{"labels": "{}", "value": value} for value in shown]
    return {
        "name": f"{name}, {case}",
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": f"sum({query})", "eval_time": "8m", "exp_samples": samples}],
    }


@pytest.mark.parametrize("name", sorted(EXPRESSIONS))
def test_no_comparison_takes_in_a_division_and_no_division_is_by_0(name: str) -> None:
    """PromQL binds `a / b > 0` as `(a / b) > 0`: a filter on the ratio, not on its denominator."""
    assert _faults(EXPRESSIONS[name]) == []


@pytest.mark.parametrize(
    ("expression", "faulty"),
    [
        ("a / b > 0", True),
        ("sum(a) / sum by (x) (b)", True),
        ("c and (a / b > 0.1)", True),
        ("a / (b > 0)", False),
        ("1 - sum(a) / (sum by (x) (b) > 0)", False),
        ('(a / (b{path="/x>0"} > 0)) > 0.1', False),
    ],
)
def test_the_search_for_such_divisions_finds_them(expression: str, faulty: bool) -> None:
    assert bool(_faults(expression)) is faulty


def _faults(expression: str) -> list[str]:
    return [
        term
        for level in _levels(expression)
        for term in re.split(r"\b(?:and|or|unless)\b", level)
        if "/" in term
        and (re.search("[<>]|==|!=", term) or "/" in re.sub(r"/\s*GUARDED", "", term))
    ]


def _levels(expression: str) -> Iterator[str]:
    """The expression cut at its parentheses, innermost first; GUARDED stands for a `(… > 0)`."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"|\{[^}]*\}|\[[^\]]*\]', "", expression)
    while inner := re.search(r"\(([^()]*)\)", text):
        yield inner[1]
        stands_for = " GUARDED " if re.search(r">\s*0\s*$", inner[1]) else " GROUP "
        text = text[: inner.start()] + stands_for + text[inner.end() :]
    yield text
