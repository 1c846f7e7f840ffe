"""Two replicas of inference, with vLLM, restart one after the other under load: no request fails.

Users have no retries: any answer but a whole one fails the test. Every second user has it streamed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, STARTER_ENGINE
from tests.support.command import ratchet
from tests.support.second_engine import second_engine
from tests.support.unforgiving_users import CALL_S, Replies, asking, served_by
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_200)]

REPLICAS = ("inference", "inference-b")
VERSION = "assistant-base"
SERVES_S = 300.0
PROCESSES = second_engine("b", "the second replica of inference, with an engine of its own")


@pytest.fixture
def stack(clean_environment: None, starter: str, tmp_path: Path) -> Iterator[Stack]:
    with Stack(
        tmp_path,
        services=["router", "rollout", *REPLICAS],
        processes=PROCESSES,
        env={BASE_MODEL: starter, **STARTER_ENGINE},
        ports="free",
        scrape_interval="1s",
    ) as started:
        yield started


async def says_that_it_stops(url: str) -> None:
    """Wait until a replica is unready because it stops."""
    async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:

        async def stops() -> bool:
            answer = await http.get("/readyz")
            return answer.status_code == 503 and answer.json()["checks"]["service"] == "stopping"

        await eventually(stops, f"{url} says that it stops")


async def more_answers(answers: Replies) -> None:
    """Wait until users get answers after what just happened."""
    before = answers.whole
    await eventually(lambda: answers.whole > before, "both serve again", SERVES_S)


async def test_replicas_of_inference_restart_under_load_and_no_request_fails(
    stack: Stack, starter: str, record_property: Callable[[str, object], None]
) -> None:
    options = ("--base", starter, "--reason", "the model as it is")
    made = ratchet("versions", "register", VERSION, *options, env=stack.environment())
    assert made.status == 0, made.err
    url = stack.url("router")

    await served_by(url, VERSION, SERVES_S)
    async with asking(url) as answers:
        for name in REPLICAS:
            restarting = asyncio.create_task(asyncio.to_thread(stack.restart, name))
            await says_that_it_stops(stack.url(name))
            await restarting
        await more_answers(answers)
    record_property("whole", answers.whole)
    record_property("failed", len(answers.failed))
    async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:
        metrics = (await http.get("/metrics")).text
    retries = re.findall(r"engine_retries_total\{.*?reason=\"(\w+)\".*?\} (\S+)", metrics)
    record_property("retries", dict(retries))
    assert answers.failed == []
    assert float(dict(retries)["unavailable"]) > 0
