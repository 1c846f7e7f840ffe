"""The whole stack comes up, sees itself, and heals."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request

from tests.support.waiting import wait_until

JOBS = {
    "router",
    "feedback",
    "intake",
    "rollout",
    "inference",
    "aggregator",
    "training",
    "vllm",
}


def jobs_up(prometheus: str) -> dict[str, float]:
    query = urllib.parse.urlencode({"query": "up"})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}") as answer:
        rows = json.load(answer)["data"]["result"]
    return {row["metric"]["job"]: float(row["value"][1]) for row in rows}


def test_every_process_is_ready_and_scraped(full_stack):
    for name in JOBS - {"vllm"} | {"kafka", "redis", "prometheus", "alertmanager"}:
        assert full_stack.is_ready(name), name
    prometheus = full_stack.url("prometheus")
    wait_until(lambda: jobs_up(prometheus) == dict.fromkeys(JOBS, 1.0), "every target is up")


def test_the_rules_are_loaded_without_an_error(full_stack):
    with urllib.request.urlopen(f"{full_stack.url('prometheus')}/api/v1/rules") as answer:
        groups = json.load(answer)["data"]["groups"]
    unhealthy = [
        (rule["name"], rule.get("lastError"))
        for group in groups
        for rule in group["rules"]
        if rule["health"] == "err"
    ]
    assert unhealthy == []


def test_a_killed_service_is_ready_again(full_stack):
    before = full_stack.kill("feedback")
    wait_until(lambda: full_stack.seen()["feedback"].pid not in (0, before), "a new process")
    full_stack.wait_ready("feedback", 60)
