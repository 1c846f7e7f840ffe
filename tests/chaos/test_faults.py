"""Fault table: each part down for a while under load. Chats go on where they can; nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from deploy.local.stack import Stack
from tests.support.crowd import chatting, counting_stack, counts_agree, kill, serve_first_version
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

AWAY_S = 15.0
LOAD_S = 5.0
SETTLE_S = 240.0
RECOVERED = 200
"""Answers after which a load counts as served again."""
NO_CHAT_NEEDS = ("kafka", "redis", "feedback", "aggregator")


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with counting_stack(tmp_path_factory.mktemp("faults")) as started:
        yield started


def chats(users_requests: dict[tuple[str, str], int]) -> dict[str, int]:
    """Outcomes of chat calls, whatever the version."""
    found: dict[str, int] = {}
    for (_, outcome), count in users_requests.items():
        found[outcome] = found.get(outcome, 0) + count
    return found


@pytest.mark.parametrize("name", [*NO_CHAT_NEEDS, "engine"])
async def test_a_part_that_hangs_and_comes_back(stack: Stack, name: str) -> None:
    await serve_first_version(stack)
    load = chatting(stack, seed=11, chats_per_s=15.0, votes_per_s=1.0, settle_s=SETTLE_S)
    async with load as users:
        await asyncio.sleep(LOAD_S)
        stack.kill(name, signal.SIGSTOP)
        try:
            before = chats(dict(users.tally.requests)).get("ok", 0)
            await asyncio.sleep(AWAY_S)
            during = chats(dict(users.tally.requests)).get("ok", 0)
        finally:
            stack.kill(name, signal.SIGCONT)
        if name in NO_CHAT_NEEDS:
            assert during > before, "no chat was answered meanwhile"
        await eventually(
            lambda: chats(dict(users.tally.requests)).get("ok", 0) > during + RECOVERED,
            "chats are answered again",
        )
    if name in NO_CHAT_NEEDS:
        assert set(chats(dict(users.tally.requests))) == {"ok"}, list(users.seen.problems)
    await counts_agree(stack, users, settle_s=SETTLE_S)


@pytest.mark.parametrize("name", ["kafka", "redis", "engine"])
async def test_a_part_that_dies(stack: Stack, name: str) -> None:
    await serve_first_version(stack)
    load = chatting(stack, seed=12, chats_per_s=15.0, votes_per_s=1.0, settle_s=SETTLE_S)
    async with load as users:
        await asyncio.sleep(LOAD_S)
        await kill(stack, name)
        after = chats(dict(users.tally.requests)).get("ok", 0)
        await eventually(
            lambda: chats(dict(users.tally.requests)).get("ok", 0) > after + RECOVERED,
            "chats are answered again",
        )
    if name in NO_CHAT_NEEDS:
        assert set(chats(dict(users.tally.requests))) == {"ok"}, list(users.seen.problems)
    await counts_agree(stack, users, settle_s=SETTLE_S)
