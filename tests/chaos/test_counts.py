"""The three counts, votes too, agree when aggregator, feedback and router are killed under load.

`make test` has the recount of feedback under more faults (test_recount).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from deploy.local.stack import Stack
from tests.support.crowd import chatting, counting_stack, counts_agree, kill, serve_first_version

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

SEED = 5
ROUNDS = 2
BEFORE_KILL_S = (3.0, 6.0)
SETTLE_S = 180.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with counting_stack(tmp_path_factory.mktemp("counts")) as started:
        yield started


async def test_counts_agree_whatever_is_killed(stack: Stack) -> None:
    await serve_first_version(stack)
    rng = random.Random(SEED)
    load = chatting(stack, seed=SEED, chats_per_s=25.0, votes_per_s=3.0, settle_s=SETTLE_S)
    async with load as users:
        for _ in range(ROUNDS):
            for name in ("aggregator", "feedback", "router"):
                await asyncio.sleep(rng.uniform(*BEFORE_KILL_S))
                await kill(stack, name)
    await counts_agree(stack, users, settle_s=SETTLE_S)
