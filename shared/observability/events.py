"""Log event names that several modules share: one name for each dependency that is unavailable.

One search for a name finds every effect of one outage. Where it hit is a field: `during` says what
the process was doing, the other fields name the topic, job or request, and `error` says why.
"""

from __future__ import annotations

from enum import StrEnum


class Unavailable(StrEnum):
    """The closed set of `….unavailable` events; a dependency that fails has no other name."""

    kafka = "kafka.unavailable"
    redis = "redis.unavailable"
    prometheus = "prometheus.unavailable"
    engine = "engine.unavailable"
    moderation = "moderation.unavailable"
    detector = "detector.unavailable"
    """The detector of personal data."""
    judge = "judge.unavailable"
    """The AI judge of evaluations."""
    scorer = "scorer.unavailable"
    """The served reward model."""
    storage = "storage.unavailable"
    """The store of datasets and adapters."""
