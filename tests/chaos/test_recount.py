"""A mass of feedback while everything is killed, cut off and mistimed: a recount agrees exactly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.support.aggregator_process import AggregatorProcess, Series, series_of
from tests.support.aggregator_proxy import CoordinatorProxy
from tests.support.crowd import STABLE, counting_stack, kill, serve_first_version
from tests.support.mass_feedback import MassFeedback, MassRecount
from tests.support.waiting import eventually

SEED = 9
MASS = int(os.environ.get("RECOUNT_EVENTS", "1_000_000"))
FEW = 50_000
VICTIMS = ("aggregator", "feedback", "intake", "router", "redis", "kafka")
DAYS_AHEAD = 40
CUT_S = 12.0
"""Longer than a worker's session: its partitions have moved when the connection is back."""
SETTLE_S = 3600.0
"""A million on a busy machine: the aggregator has fallen behind by then."""
POLL_S = 2.0


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with counting_stack(
        tmp_path_factory.mktemp("recount"), "intake", env={"RATCHET_FEEDBACK_READ_MODEL": "false"}
    ) as started:
        yield started


class SecondWorker:
    """A worker whose clock is ahead and whose way to the coordinator can be cut; its keeper restarts it."""

    def __init__(self, proxy: CoordinatorProxy, directory: Path) -> None:
        module = ("-m", "tests.support.aggregator_runner", "ahead", str(DAYS_AHEAD))
        self.process = AggregatorProcess(proxy.address, directory, module=module)

    async def keep(self) -> None:
        """Start it, and again whenever it ended itself."""
        self.process.start()
        try:
            while True:
                await asyncio.sleep(0.5)
                if not self.process.alive():
                    self.process.start()
        finally:
            self.process.stop()


async def trouble(
    stack: Stack, proxy: CoordinatorProxy, pause_s: tuple[float, float], done: Counter[str]
) -> None:
    """Kill each part and cut the second worker off, in random order, again and again."""
    rng = random.Random(SEED)
    while True:
        for name in rng.sample((*VICTIMS, "coordinator"), len(VICTIMS) + 1):
            await asyncio.sleep(rng.uniform(*pause_s))
            if name == "coordinator":
                proxy.cut = True
                await asyncio.sleep(CUT_S)
                proxy.cut = False
            else:
                await kill(stack, name)
            done[name] += 1


async def exported(stack: Stack, second: SecondWorker) -> Counter[tuple[str, str]]:
    """Feedback by version and type that both workers' counters say, each partition once."""
    found: Series = {}
    for port in (stack.ports["aggregator"], second.process.port):
        found.update((await series_of(port)).get("ratchet_feedback_total", {}))
    counts: Counter[tuple[str, str]] = Counter()
    for labels, value in found.items():
        names = dict(labels)
        counts[names["version"], names["type"]] += int(value)
    return counts


@pytest.mark.parametrize(
    ("events", "pause_s"),
    [
        pytest.param(FEW, (1.0, 3.0), marks=pytest.mark.timeout(600), id="few"),
        pytest.param(
            MASS, (15.0, 45.0), marks=[pytest.mark.verify, pytest.mark.timeout(10_800)], id="mass"
        ),
    ],
)
async def test_a_recount_agrees_whatever_is_killed_cut_off_or_mistimed(
    stack: Stack,
    tmp_path: Path,
    events: int,
    pause_s: tuple[float, float],
    record_property: Callable[[str, object], None],
) -> None:
    await serve_first_version(stack)
    mass, done = MassFeedback(stack, STABLE, SEED), Counter[str]()
    async with CoordinatorProxy(stack.address("kafka")) as proxy:
        second = SecondWorker(proxy, tmp_path / "second")
        keeper = asyncio.create_task(second.keep())
        troubling = asyncio.create_task(trouble(stack, proxy, pause_s, done))
        try:
            began = time.monotonic()
            await mass.send(events)
            record_property("sent_s", round(time.monotonic() - began))
            await eventually(lambda: len(done) > len(VICTIMS), "each part was killed", SETTLE_S)
            troubling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await troubling
            proxy.cut = False
            deadline = time.monotonic() + SETTLE_S
            while (seen := await exported(stack, second)) != mass.expected:
                assert time.monotonic() < deadline, (seen, mass.expected)
                await asyncio.sleep(POLL_S)
            record_property("settled_s", round(time.monotonic() - began))
            truth = await MassRecount.of(stack.address("kafka"))
            assert await exported(stack, second) == mass.expected, "counted twice since"
        finally:
            for task in (troubling, keeper):
                task.cancel()
            await asyncio.gather(troubling, keeper, return_exceptions=True)
    record_property("events", mass.sent.total())
    record_property("kills", dict(done))
    assert truth.feedback == mass.expected
    assert (truth.unjoined, truth.other_letters) == (0, [])
    assert truth.letters == truth.broken
