"""Two replicas of inference, with vLLM, restart one after the other under load: no request fails.

Users have no retries: any answer but a whole one fails the test. Every second user has it streamed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, STARTER_ENGINE
from tests.support.command import ratchet
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_200)]

REPLICAS = ("inference", "inference-b")
VERSION = "assistant-base"
USERS = 6
CALL_S, SERVES_S = 120.0, 300.0
PROCESSES: dict[str, dict[str, Any]] = {
    "inference-b": {
        "about": "the second replica of inference, with an engine of its own",
        "module": "services.inference",
        "ports": {"inference-b": 8092, "vllm-b": 8093},
        "env": {
            "RATCHET_INFERENCE_PORT": "${port.inference-b}",
            "RATCHET_INFERENCE_ENGINE_URL": "${url.vllm-b}",
            "RATCHET_INFERENCE_ENGINE_PYTHON": "${root}/.venv-ml/bin/python",
            "RATCHET_INFERENCE_ENGINE_DRAIN_S": "20",
        },
        "after": ["topics", "redis"],
        "ready": {"http": "${url.inference-b}/readyz", "timeout_s": 600},
        "stop_s": 60,
    },
    "router": {"env": {"RATCHET_ROUTER_ENGINES": "${url.vllm},${url.vllm-b}"}},
    "rollout": {"env": {"RATCHET_ROLLOUT_AGENTS": "${url.inference},${url.inference-b}"}},
}


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


@dataclass
class RestartReplies:
    """What users got: answers to their end, and whatever else came."""

    whole: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, answer: httpx.Response) -> None:
        """Count a reply, streamed or not."""
        ended = re.search(r'"finish_reason":"(stop|length)"', answer.text)
        if answer.status_code == 200 and ended and '"error"' not in answer.text:
            self.whole += 1
        else:
            self.failed.append(f"{answer.status_code} {answer.text[-300:]}")


async def ask_until(stop: asyncio.Event, url: str, user: int, answers: RestartReplies) -> None:
    """One user's questions, one after the other."""
    async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:
        while not stop.is_set():
            body = {
                "model": "assistant",
                "user": f"u{user}",
                "messages": [{"role": "user", "content": "Where is my parcel?"}],
                "max_tokens": 64,
                "stream": user % 2 == 1,
            }
            answers.add(await http.post("/v1/chat/completions", json=body))


async def says_that_it_stops(url: str) -> None:
    """Wait until a replica is unready because it stops."""
    async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:

        async def stops() -> bool:
            answer = await http.get("/readyz")
            return answer.status_code == 503 and answer.json()["checks"]["service"] == "stopping"

        await eventually(stops, f"{url} says that it stops")


async def test_replicas_of_inference_restart_under_load_and_no_request_fails(
    stack: Stack, starter: str, record_property: Callable[[str, object], None]
) -> None:
    options = ("--base", starter, "--reason", "the model as it is")
    made = ratchet("versions", "register", VERSION, *options, env=stack.environment())
    assert made.status == 0, made.err
    url = stack.url("router")

    async def serves() -> bool:
        async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:
            question = [{"role": "user", "content": "Hello"}]
            body = {"model": "assistant", "messages": question, "max_tokens": 4}
            answer = await http.post("/v1/chat/completions", json=body)
            return answer.headers.get("x-ratchet-version") == VERSION

    await eventually(serves, f"{VERSION} answers", SERVES_S)
    answers, stop = RestartReplies(), asyncio.Event()
    users = [asyncio.create_task(ask_until(stop, url, user, answers)) for user in range(USERS)]
    for name in REPLICAS:
        restarting = asyncio.create_task(asyncio.to_thread(stack.restart, name))
        await says_that_it_stops(stack.url(name))
        await restarting
    restarted = answers.whole
    await eventually(lambda: answers.whole > restarted, "both serve again", SERVES_S)
    stop.set()
    await asyncio.gather(*users)
    record_property("whole", answers.whole)
    record_property("failed", len(answers.failed))
    async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:
        metrics = (await http.get("/metrics")).text
    retries = re.findall(r"engine_retries_total\{.*?reason=\"(\w+)\".*?\} (\S+)", metrics)
    record_property("retries", dict(retries))
    assert answers.failed == []
    assert float(dict(retries)["unavailable"]) > 0
