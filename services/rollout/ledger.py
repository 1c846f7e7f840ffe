"""The fold of `rollouts.v1`: every rollout with its decisions, and who leads."""

# pyright: strict
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from services.rollout.errors import BadStrategy
from services.rollout.steps import RolloutState
from services.rollout.strategy import parse
from shared.kafka.envelope import Unreadable, decode, models_by_type
from shared.kafka.log import Record
from shared.registry.rollouts import (
    Decision,
    DecisionKind,
    LeaderElected,
    RoutingState,
    RoutingTable,
)

MAX_ROLLOUTS = 500
MAX_MOVES = 500
MAX_HOLDS = 200
"""Kept in memory for each rollout; the topic keeps all."""

MODELS = models_by_type(LeaderElected, Decision)


@dataclass(frozen=True, slots=True)
class Logged:
    """A decision and its offset."""

    offset: int
    decision: Decision


@dataclass(slots=True)
class Entry:
    """One rollout as the log tells it."""

    state: RolloutState
    moves: deque[Logged] = field(default_factory=lambda: deque(maxlen=MAX_MOVES))
    holds: deque[Logged] = field(default_factory=lambda: deque(maxlen=MAX_HOLDS))

    @property
    def last(self) -> Decision:
        """The newest decision."""
        newest = max((queue[-1] for queue in (self.moves, self.holds) if queue), key=_offset)
        return newest.decision

    def decisions(self, after: int, limit: int) -> list[Logged]:
        """Decisions past an offset, oldest first."""
        return [one for one in self._all() if one.offset > after][:limit]

    def evidence(self) -> list[dict[str, Any]]:
        """The newest evidence with the judge's state whole, and all since, oldest first."""
        found = [one.decision.evidence for one in self._all()]
        whole = [place for place, evidence in enumerate(found) if "judge" in evidence]
        return found[whole[-1] :] if whole else []

    def _all(self) -> list[Logged]:
        return sorted((*self.moves, *self.holds), key=_offset)


class Ledger:
    """Feed it every record of the topic in order."""

    def __init__(self) -> None:
        self.routing = RoutingTable()
        self.holder = ""
        self.read_to = -1
        self._entries: dict[str, Entry] = {}
        self._of_models: dict[str, deque[Logged]] = {}

    @property
    def token(self) -> int:
        """The leader's token, -1 before the first leader."""
        return self.routing.token

    def apply(self, record: Record) -> None:
        """Fold one record. What a fenced leader wrote is passed over.

        Raises:
            Unreadable: neither a decision nor an election, or a decision without its state.

        """
        self.read_to = max(self.read_to, record.offset)
        event = decode(record.headers, record.value, MODELS)
        if isinstance(event, LeaderElected):
            self.routing.elect(record.offset)
            self.holder = event.holder
            return
        assert isinstance(event, Decision)
        if not self.routing.put(RoutingState.of(event)):
            return
        logged = Logged(record.offset, event)
        if not event.rollout_id:
            queue = self._of_models.setdefault(event.model, deque(maxlen=MAX_MOVES))
            queue.append(logged)
            return
        self._fold(logged)

    def get(self, rollout_id: str) -> Entry | None:
        """A rollout, or None."""
        return self._entries.get(rollout_id)

    def entries(self, model: str = "") -> list[Entry]:
        """All rollouts (of a model), oldest first."""
        return [
            entry for entry in self._entries.values() if not model or entry.state.model == model
        ]

    def unfinished(self) -> Iterator[Entry]:
        """Rollouts that have not ended: at most one a model."""
        for entry in list(self._entries.values()):
            if not entry.state.phase.finished:
                yield entry

    def unfinished_of(self, model: str) -> Entry | None:
        """The model's rollout that has not ended, or None."""
        return next((one for one in self.unfinished() if one.state.model == model), None)

    def of_model(self, model: str) -> list[Logged]:
        """Decisions about a model that belong to no rollout."""
        return list(self._of_models.get(model, ()))

    def _fold(self, logged: Logged) -> None:
        decision = logged.decision
        entry = self._entries.get(decision.rollout_id)
        raw: Any = decision.evidence.get("state")
        if not isinstance(raw, dict):
            raise Unreadable("schema", "evidence.state: missing, so the rollout cannot go on")
        if entry is None:
            try:
                strategy = parse(decision.strategy)
            except BadStrategy as error:
                raise Unreadable("schema", error.message) from None
            entry = Entry(RolloutState.model_validate({**raw, "strategy": strategy}))
            self._entries[decision.rollout_id] = entry
            self._forget()
        else:
            entry.state = RolloutState.model_validate({**raw, "strategy": entry.state.strategy})
        queue = entry.holds if decision.kind is DecisionKind.hold else entry.moves
        queue.append(logged)

    def _forget(self) -> None:
        """Keep memory bounded: the oldest ended rollouts go."""
        ended = [name for name, one in self._entries.items() if one.state.phase.finished]
        for name in ended[: max(0, len(self._entries) - MAX_ROLLOUTS)]:
            del self._entries[name]


def _offset(logged: Logged) -> int:
    return logged.offset
