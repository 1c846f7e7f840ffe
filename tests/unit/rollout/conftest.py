"""Controllers in memory, shared by the tests of the rollout service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.rollout.fakes import ControllerBench, ControllerHarness, register, until_known


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ControllerBench]:
    made = ControllerBench(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def harness(bench: ControllerBench) -> ControllerHarness:
    """A leader of a model with v1 stable and v2 registered."""
    await register(bench.log, "v1")
    made = await bench.harness()
    await made.round()
    await register(bench.log, "v2")
    await until_known(made, "v2")
    return made
