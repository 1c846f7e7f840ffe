"""Comparison of a shadow answer with the shown one: cheap rules, each answer by itself. Pure."""

# pyright: strict
from __future__ import annotations

from services.inference.engine import Generated
from shared.contracts.events.generations import ShadowComparison, ShownAnswer
from shared.refusals import is_refusal
from shared.similarity import jaccard

MAX_LENGTH_RATIO = 100.0


def compare(shown: ShownAnswer, made: Generated, latency_ms: float) -> ShadowComparison:
    """How a candidate's answer differs from the one that a person was shown.

    Both texts are redacted. An answer that calls tools is no refusal, whatever it says.
    """
    return ShadowComparison(
        length_ratio=min(len(made.text) / max(1, len(shown.completion)), MAX_LENGTH_RATIO),
        similarity=similarity(shown.completion, made.text),
        refused=not made.tool_calls and is_refusal(made.text),
        shown_refused=not shown.tool_calls and is_refusal(shown.completion),
        tools_equal=made.tool_calls == shown.tool_calls,
        latency_ms=latency_ms,
        shown_latency_ms=shown.latency_ms,
    )


def similarity(one: str, other: str) -> float:
    """Jaccard index of the words of two texts, in [0, 1]; 1 for two texts without any."""
    return jaccard(set(one.casefold().split()), set(other.casefold().split()))
