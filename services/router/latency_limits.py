"""Latency limits: after how long an answer is slow, by model and endpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from services.router.fields import ENGINE_FIELDS

ANY = "*"
FORM = "model:endpoint=seconds or model:endpoint=seconds/seconds to the first token"
MAX_LIMIT_S = 3_600.0


class LatencyLimit(NamedTuple):
    """Seconds after which an answer is slow: a whole one, and the first token of a stream."""

    answer_s: float = 2.0
    first_token_s: float = 2.0


class LatencyLimits:
    """Finds the limit of a request: its model's for the endpoint, else the next less special one."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Iterable[str] = ()) -> None:
        """Each rule has the form `FORM`; `*` stands for any model or any endpoint.

        Raises:
            ValueError: a rule has another form, an unknown endpoint, or no seconds above 0.

        """
        self._rules: dict[tuple[str, str], LatencyLimit] = {(ANY, ANY): LatencyLimit()}
        for rule in rules:
            place, limit = _read(rule)
            self._rules[place] = limit

    def limit_s(self, model: str, endpoint: str, *, stream: bool) -> float:
        """After how many seconds an answer of this model and endpoint is slow."""
        rules = self._rules
        limit = (
            rules.get((model, endpoint))
            or rules.get((model, ANY))
            or rules.get((ANY, endpoint))
            or rules[ANY, ANY]
        )
        return limit.first_token_s if stream else limit.answer_s

    @property
    def edges(self) -> frozenset[float]:
        """All limits in seconds."""
        return frozenset(seconds for limit in self._rules.values() for seconds in limit)


def _read(rule: str) -> tuple[tuple[str, str], LatencyLimit]:
    place, _, limit = rule.rpartition("=")
    model, _, endpoint = place.rpartition(":")
    if not model or endpoint not in (ANY, *ENGINE_FIELDS):
        known = ", ".join((ANY, *ENGINE_FIELDS))
        raise ValueError(f"{rule}: must be {FORM}; the endpoint is one of {known}")
    answer, slash, first_token = limit.partition("/")
    try:
        found = LatencyLimit(float(answer), float(first_token if slash else answer))
    except ValueError:
        raise ValueError(f"{rule}: must be {FORM}") from None
    if not all(0 < seconds <= MAX_LIMIT_S for seconds in found):
        raise ValueError(f"{rule}: seconds must be above 0 and at most {MAX_LIMIT_S:g}")
    return (model, endpoint), found
