"""After how long an answer is slow, by model and endpoint."""

from __future__ import annotations

import pytest

from services.router.latency_limits import LatencyLimits
from services.router.settings import RouterSettings
from tests.unit.router.conftest import GatewayHarness

SLOW = "ratchet_router_slow_requests_total"


def test_the_most_special_rule_counts() -> None:
    rules = ("acme/a:b:*=30/3", "acme/a:b:responses=40", "*:embeddings=0.5", "*:*=5/1")
    limits = LatencyLimits(rules)
    assert limits.limit_s("acme/a:b", "chat", stream=False) == 30
    assert limits.limit_s("acme/a:b", "chat", stream=True) == 3
    assert limits.limit_s("acme/a:b", "responses", stream=True) == 40
    assert limits.limit_s("acme/a:b", "embeddings", stream=False) == 30
    assert limits.limit_s("other", "embeddings", stream=False) == 0.5
    assert limits.limit_s("other", "chat", stream=True) == 1
    assert limits.edges == {30, 3, 40, 0.5, 5, 1}


def test_without_a_rule_the_limit_is_two_seconds() -> None:
    limits = LatencyLimits()
    assert (
        limits.limit_s("m", "chat", stream=False) == limits.limit_s("m", "chat", stream=True) == 2
    )
    assert limits.edges == {2}


@pytest.mark.parametrize(
    "rule", ["m=3", "m:chats=3", ":chat=3", "m:chat=0", "m:chat=nan", "m:chat=3/", "m:chat=3601"]
)
def test_a_rule_of_another_form_is_refused_by_name(rule: str) -> None:
    with pytest.raises(ValueError, match="latency_limits") as refused:
        RouterSettings(latency_limits=(rule,))
    assert rule in str(refused.value)


@pytest.mark.parametrize(("limit", "slow"), [("m:chat=0.05", 1), ("m:responses=0.05", 0)])
async def test_an_answer_after_its_limit_is_slow(
    bench: GatewayHarness, limit: str, slow: int
) -> None:
    await bench.start(delay_s=0.1, latency=LatencyLimits((limit,)))
    bench.route()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    (await bench.client.post("/v1/chat/completions", json=body)).raise_for_status()
    text = (await bench.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f"{SLOW}{{")]
    assert sum(float(line.split()[-1]) for line in lines) == slow
