"""The harness that several of training's tests work in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.harness import TrainingHarness, stocked


@pytest.fixture
async def harness(tmp_path: Path) -> TrainingHarness:
    return await stocked(tmp_path)
