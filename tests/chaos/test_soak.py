"""Load for a long time: no process grows without end, no call fails, the three counts agree.

Two hours at 200 requests/s, where the machine bears it: `SOAK_S=7200 SOAK_CHATS_PER_S=130`, as
every second chat is followed by feedback.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.crowd import chatting, counting_stack, counts_agree, serve_first_version

SOAK_S = float(os.environ.get("SOAK_S", "900"))
CHATS_PER_S = float(os.environ.get("SOAK_CHATS_PER_S", "25"))
WARM_S = SOAK_S / 3
SETTLE_S = 300.0 + SOAK_S / 10
MIB = 2**20
GROWTH_MIB = {
    "router": 16,
    "feedback": 16,
    "intake": 16,
    "rollout": 16,
    "training": 16,
    "aggregator": 64,
}
"""Most a process may grow after the first third. The aggregator keeps interactions of its join window."""
LOOKS = 8
"""Times that memory is read after the first third."""
NO_JOB = {"RATCHET_TRAINING_MIN_PAIRS": "1000000000"}
"""The training service follows the pairs and its schedule; a job's own process is another's test."""

pytestmark = [pytest.mark.verify, pytest.mark.timeout(SOAK_S + 2 * SETTLE_S + 300)]


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run_dir, further = tmp_path_factory.mktemp("soak"), ("intake", "rollout", "training")
    with counting_stack(run_dir, *further, env=NO_JOB) as started:
        yield started


def resident_mib(stack: Stack) -> dict[str, float]:
    """Resident memory of the services, in MiB."""
    page = os.sysconf("SC_PAGE_SIZE")
    return {
        name: int(Path(f"/proc/{stack.pid(name)}/statm").read_text().split()[1]) * page / MIB
        for name in GROWTH_MIB
    }


async def test_nothing_grows_and_nothing_is_lost(
    stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    await serve_first_version(stack)
    pids = {name: stack.pid(name) for name in GROWTH_MIB}
    load = chatting(stack, seed=21, chats_per_s=CHATS_PER_S, votes_per_s=1.0, settle_s=SETTLE_S)
    async with load as users:
        await asyncio.sleep(WARM_S)
        seen = [resident_mib(stack)]
        for _ in range(LOOKS):
            await asyncio.sleep((SOAK_S - WARM_S) / LOOKS)
            seen.append(resident_mib(stack))
    warm, late = seen[0], seen[-1]
    assert {name: stack.pid(name) for name in GROWTH_MIB} == pids, "somebody was started again"
    for name in warm:
        record_property(name, f"{' '.join(f'{look[name]:.0f}' for look in seen)} MiB")
    record_property("answers", sum(users.tally.requests.values()))
    outcomes = {outcome for _, outcome in users.tally.requests}
    assert (outcomes, list(users.seen.problems)) == ({"ok"}, [])
    grown = {name: late[name] - warm[name] for name in warm}
    assert all(grown[name] <= GROWTH_MIB[name] for name in grown), grown
    await counts_agree(stack, users, settle_s=SETTLE_S)
