"""Sampling of prompts from traffic: what is over-weighted, and what is never asked again."""

from __future__ import annotations

import random
from collections import Counter

from services.feedback.annotation.sampling import TrafficPrompt, sample
from services.feedback.annotation.traffic import RecentTraffic
from shared.contracts.events.base import Message
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.topics import INTERACTIONS
from shared.testing.log import MemoryLog
from tests.support.aggregator import interaction


def prompt(number: int, category: str, *, failing: bool = False, length: int = 10) -> TrafficPrompt:
    text = f"{number:05}".ljust(length, "x")
    return TrafficPrompt((Message(role="user", content=text),), category, failing)


def test_rare_categories_get_as_many_as_common_ones() -> None:
    asked = [prompt(n, "common") for n in range(900)] + [
        prompt(n, "rare") for n in range(900, 1000)
    ]
    drawn = Counter(
        one.category for seed in range(50) for one in sample(asked, 20, random.Random(seed))
    )
    assert 0.4 < drawn["rare"] / drawn.total() < 0.6


def test_failures_and_edge_cases_weigh_more() -> None:
    asked = [prompt(n, "a", length=100) for n in range(800)]
    asked += [prompt(n, "a", failing=True, length=100) for n in range(800, 900)]
    asked += [prompt(n, "a", length=9_000) for n in range(900, 920)]
    drawn = [one for seed in range(200) for one in sample(asked, 20, random.Random(seed))]
    failing = sum(one.failing for one in drawn) / len(drawn)
    long = sum(one.length > 1_000 for one in drawn) / len(drawn)
    # The weights are 800, 300 and 40.
    assert 0.22 < failing < 0.31
    assert 0.025 < long < 0.05


def test_all_are_drawn_where_there_are_no_more() -> None:
    asked = [prompt(n, "a") for n in range(3)]
    assert sorted(one.messages[0].content for one in sample(asked, 20, random.Random(1))) == [
        one.messages[0].content for one in asked
    ]
    assert sample([], 5, random.Random(1)) == []


async def test_traffic_is_the_tenant_s_own_text_each_conversation_once() -> None:
    log = MemoryLog()
    for number, change in enumerate(
        (
            {},
            {"outcome": "timeout"},
            {"tenant": "acme"},
            {"purpose": "comparison"},
            {"messages": [{"role": "user", "content": "other"}], "finish_reason": "length"},
            {"messages": [{"role": "user", "content": "x" * 5_000}]},
            {"endpoint": "completions", "messages": [{"role": "user", "content": "a text"}]},
            {"response_format": "{}", "messages": [{"role": "user", "content": "as JSON"}]},
            {"outcome": "client_error", "messages": [{"role": "user", "content": "wrong"}]},
        )
    ):
        body = interaction(f"t{number}").model_dump(mode="json") | {"tenant": "default"} | change
        event = InteractionRecorded.model_validate(body)
        await log.publish(INTERACTIONS, key=event.trace_id, event=event, event_id=event.trace_id)
    traffic = RecentTraffic(log, lambda question, named: named or question[:5])
    found = {one.messages[-1].content: one.failing for one in await traffic.prompts("default")}
    question = interaction("t0").messages[-1].content
    assert found == {question: True, "other": True}
