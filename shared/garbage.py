"""The garbage collector of a service that makes many objects, of which few are in cycles."""

from __future__ import annotations

import gc

THRESHOLD = 50_000
"""New container objects between two collections. Python's own 700 is less than one batch of
events makes, and each look goes through all that lives and is new."""


def spare_collector() -> None:
    """Look for cycles seldom, and never among what start-up made. Call once all is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)
