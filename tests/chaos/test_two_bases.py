"""A newer base takes over under load, beside the old one: two engines with vLLM, no request fails.

Users have no retries. Both bases are the starter model; the newer one's tokenizer file has another
hash, so that to all who compare hashes it is another model.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, STARTER_ENGINE
from tests.support.command import Ran, ratchet
from tests.support.second_engine import second_engine
from tests.support.unforgiving_users import CALL_S, Replies, asking, served_by
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_200)]

OLD, NEW = "assistant-old-base", "assistant-new-base"
SERVES_S = 300.0
STRATEGY = """
name: quick
steps:
  - shadow: {share: 100, minimum: 10, duration: 1s, errorLimit: 5%, deadline: 1h}
  - setWeight: 50
  - analysis: {minimum: {requests: 1000000, feedback: 0}, deadline: 1h}
  - setWeight: 100
  - pause: {duration: 1m}
"""


@pytest.fixture
def newer_base(starter: str, tmp_path: Path) -> Path:
    folder = tmp_path / "newer-base"
    shutil.copytree(starter, folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()), indent=1))
    return folder


@pytest.fixture
def stack(
    clean_environment: None, starter: str, newer_base: Path, tmp_path: Path
) -> Iterator[Stack]:
    beside = second_engine(
        "next",
        "the engine of the newer base, beside the other",
        # It is ready once a version of its base is rolled out.
        ready="/healthz",
        env={BASE_MODEL: str(newer_base)},
    )
    with Stack(
        tmp_path / "stack",
        services=["router", "rollout", "inference", "inference-next"],
        processes=beside,
        env={BASE_MODEL: starter, **STARTER_ENGINE},
        ports="free",
        scrape_interval="1s",
    ) as started:
        yield started


async def command(stack: Stack, *words: str) -> Ran:
    """A command of the operator's that must do what it was asked for."""
    ran = await asyncio.to_thread(ratchet, *words, env=stack.environment())
    assert ran.status == 0, ran.err
    return ran


async def readiness(stack: Stack, name: str) -> int:
    async with httpx.AsyncClient(timeout=CALL_S) as http:
        return (await http.get(f"{stack.url(name)}/readyz")).status_code


async def roll_out(stack: Stack, version: str, *reason: str) -> None:
    """Start a rollout, wait for its first weight, and give the version everybody."""
    strategy = stack.run_dir / "quick.yaml"
    strategy.write_text(STRATEGY)
    options = ("--unevaluated", "--strategy", f"@{strategy}")
    await command(stack, "rollout", "start", version, *options, *reason)

    state: dict[str, Any] = {}

    async def has_weight() -> bool:
        state.update((await command(stack, "rollout", "status", "--json")).json)
        return state["candidate"] == version and state["weight"] > 0

    try:
        await eventually(has_weight, f"{version} has its first weight", SERVES_S)
    except AssertionError as error:
        error.add_note(f"{state.get('step_name')}: {state.get('reason')}")
        raise
    await command(stack, "rollout", "promote", "--full", *reason)


async def answered_by(answers: Replies, version: str, count: int = 5) -> None:
    before = answers.whole_by[version]
    await eventually(
        lambda: answers.whole_by[version] >= before + count, f"users get {version}", SERVES_S
    )


async def test_a_newer_base_takes_over_beside_the_old_one_and_gives_back_and_no_request_fails(
    stack: Stack, starter: str, newer_base: Path, record_property: Callable[[str, object], None]
) -> None:
    for_ = ("--reason", "a newer base")
    await command(stack, "versions", "register", OLD, "--base", starter, *for_)
    await served_by(stack.url("router"), OLD, SERVES_S)
    async with asking(stack.url("router")) as answers:
        await answered_by(answers, OLD)
        assert await readiness(stack, "inference-next") == 503, "nothing is of its base yet"
        register = ("versions", "register", NEW, "--model", "assistant")
        await command(stack, *register, "--base", str(newer_base), *for_)
        await roll_out(stack, NEW, *for_)
        await answered_by(answers, NEW, 30)
        assert await readiness(stack, "inference-next") == 200
        assert await readiness(stack, "inference") == 200, "it is the way back"
        await roll_out(stack, OLD, *for_)
        await answered_by(answers, OLD, 30)
    record_property("whole", dict(answers.whole_by))
    record_property("failed", len(answers.failed))
    async with httpx.AsyncClient(base_url=stack.url("router"), timeout=CALL_S) as http:
        metrics = (await http.get("/metrics")).text
    retries = re.findall(r"engine_retries_total\{.*?reason=\"(\w+)\".*?\} (\S+)", metrics)
    record_property("retries", dict(retries))
    assert answers.failed == []
    assert 0 < float(dict(retries)["missing"]) < answers.whole / 4
