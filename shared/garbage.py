"""Garbage collector tuning for a service that allocates much and has few reference cycles."""

from __future__ import annotations

import gc

THRESHOLD = 50_000
"""New container objects between two collections. Python's own 700 is less than one batch of
events makes, and each look goes through all that lives and is new."""


def spare_collector() -> None:
    """Collect seldom and freeze what start-up allocated. Call it after all imports."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)
