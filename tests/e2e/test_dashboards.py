"""Every panel of both dashboards shows something on a running stack."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

import pytest

from deploy.k8s.monitoring import generate
from deploy.local.stack import Stack
from tests.e2e.traffic import send_traffic
from tests.support.command import ratchet
from tests.support.waiting import wait_until

# It leaves a rollout behind on the shared stack, which the README's tests start one of their own on.
pytestmark = pytest.mark.verify

RATE_INTERVAL = "30s"
QUERIES = [
    pytest.param(query, id=f"{name}: {panel.title}")
    for name, (_, panels) in generate.BOARDS.items()
    for panel in panels
    for query, _ in panel.queries
]


def result(prometheus: str, query: str) -> list[dict[str, Any]]:
    query = query.replace("$__rate_interval", RATE_INTERVAL)
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@pytest.fixture(scope="module")
def busy(two_versions: Stack) -> Stack:
    """A stack with traffic, feedback and a rollout under way."""
    env = two_versions.environment()
    started = ratchet(
        *("rollout", "start", "assistant-v1.1", "--strategy", "demo", "--supersede"),
        *("--reason", "dashboards need something to show"),
        env=env,
    )
    if started.status != 0:
        started = ratchet("rollout", "retry", "--reason", "dashboards once more", env=env)
    assert started.status == 0, started.out + started.err
    send_traffic(two_versions, seconds=45)
    return two_versions


@pytest.mark.timeout(900)
@pytest.mark.parametrize("query", QUERIES)
def test_no_panel_is_empty(busy: Stack, query: str) -> None:
    prometheus = busy.url("prometheus")
    wait_until(lambda: result(prometheus, query), f"a sample of {query}", timeout_s=40)
