"""Decision log: the fold of the rollouts' topics into every rollout, and who leads.

A hold may be read before the decision that it follows, as they are in two topics; decisions are
kept and believed in the order of their numbers.
"""

# pyright: strict
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.rollout.errors import BadStrategy
from services.rollout.state import RolloutState
from services.rollout.strategy_files import parse
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import Record
from shared.registry.deployments import Deployments
from shared.registry.routing import RoutingState, RoutingTable

MAX_ROLLOUTS = 500
MAX_MOVES = 500
MAX_HOLDS = 200
"""Kept in memory for each rollout; the topic keeps all."""
WHOLE = "judge"
"""Part of the evidence of a decision that carries the judge's state whole."""

MODELS = models_by_type(LeaderElected, Decision)


@dataclass(slots=True)
class RolloutHistory:
    """History of one rollout, folded from the log."""

    state: RolloutState
    moves: deque[Decision] = field(default_factory=lambda: deque(maxlen=MAX_MOVES))
    holds: deque[Decision] = field(default_factory=lambda: deque(maxlen=MAX_HOLDS))

    def add(self, decision: Decision) -> None:
        """Keep a decision; earlier ones lose what only a successor or a replay would need."""
        queue = self.holds if decision.kind is DecisionKind.hold else self.moves
        queue.append(decision)
        if WHOLE in decision.evidence:
            newest = max(one.order for one in (*self.moves, *self.holds) if WHOLE in one.evidence)
            for kept in (self.moves, self.holds):
                for place, one in enumerate(kept):
                    if one.order < newest or self.state.phase.finished:
                        kept[place] = _slim(one)

    @property
    def last(self) -> Decision:
        """The newest decision."""
        return max((queue[-1] for queue in (self.moves, self.holds) if queue), key=age)

    def decisions(
        self, after: tuple[int, int], limit: int, *, moves: bool = False
    ) -> list[Decision]:
        """Decisions behind one, by its order, oldest first; `moves` leaves out holds."""
        found = self.moves if moves else self.all()
        return [one for one in found if one.order > after][:limit]

    def evidence(self) -> list[dict[str, Any]]:
        """The newest evidence with the judge's state whole, and all since, oldest first."""
        found = [one.evidence for one in self.all()]
        whole = [place for place, evidence in enumerate(found) if WHOLE in evidence]
        return found[whole[-1] :] if whole else []

    def judged(self) -> list[tuple[datetime, dict[str, Any]]]:
        """The judge's state of each decision in memory that carries it whole, oldest first."""
        return [(one.at, one.evidence[WHOLE]) for one in self.all() if WHOLE in one.evidence]

    def all(self) -> list[Decision]:
        """Every decision in memory, oldest first."""
        return sorted((*self.moves, *self.holds), key=age)


class DecisionLog:
    """Feed it every record of the topic in order."""

    def __init__(self) -> None:
        self.routing = RoutingTable()
        self.deployments = Deployments()
        self.holder = ""
        self.read_to: dict[tuple[str, int], int] = {}
        """The offset of the last record read, by topic and partition."""
        self._histories: dict[str, RolloutHistory] = {}
        self._of_models: dict[str, deque[Decision]] = {}
        self._candidates: set[str] = set()

    @property
    def token(self) -> int:
        """The leader's token, -1 before the first leader."""
        return self.routing.token

    def apply(self, record: Record) -> None:
        """Fold one record. What a fenced leader wrote is passed over, or one never elected.

        Raises:
            UnreadableRecord: neither a decision nor an election, or a decision without its state.

        """
        self.read_to[record.topic, record.partition] = record.offset
        event = decode(record.headers, record.value, MODELS)
        if isinstance(event, LeaderElected):
            self.routing.elect(record.offset)
            self.holder = event.holder
            return
        assert isinstance(event, Decision)
        if not self.routing.believes(event.token):
            return
        state = RoutingState.of(event)
        if self.routing.put(state):
            self.deployments.apply(state)
        if not event.rollout_id:
            queue = self._of_models.setdefault(event.model, deque(maxlen=MAX_MOVES))
            queue.append(event)
            return
        self._fold(event)

    def get(self, rollout_id: str) -> RolloutHistory | None:
        """A rollout, or None."""
        return self._histories.get(rollout_id)

    def was_candidate(self, version: str) -> bool:
        """Whether a version was ever in a rollout, which may be forgotten since."""
        return version in self._candidates

    def histories(self, model: str = "") -> list[RolloutHistory]:
        """All rollouts (of a model), oldest first."""
        return [
            history
            for history in self._histories.values()
            if not model or history.state.model == model
        ]

    def unfinished(self) -> Iterator[RolloutHistory]:
        """Rollouts that have not ended: at most one a model."""
        for history in list(self._histories.values()):
            if not history.state.phase.finished:
                yield history

    def unfinished_of(self, model: str) -> RolloutHistory | None:
        """The model's rollout that has not ended, or None."""
        return next((one for one in self.unfinished() if one.state.model == model), None)

    def of_model(self, model: str) -> list[Decision]:
        """Decisions about a model that belong to no rollout."""
        return list(self._of_models.get(model, ()))

    def _fold(self, decision: Decision) -> None:
        history = self._histories.get(decision.rollout_id)
        raw: Any = decision.evidence.get("state")
        if not isinstance(raw, dict):
            raise UnreadableRecord("schema", "evidence.state: missing, so the rollout cannot go on")
        if history is None:
            if decision.kind is DecisionKind.hold:
                return  # Its start was not read yet, or is forgotten; the next hold says the same.
            try:
                strategy = parse(decision.strategy)
            except BadStrategy as error:
                raise UnreadableRecord("schema", error.detail) from None
            history = RolloutHistory(RolloutState.model_validate({**raw, "strategy": strategy}))
            self._histories[decision.rollout_id] = history
            self._candidates.add(history.state.candidate)
            self._forget()
        elif decision.order > history.last.order:
            history.state = RolloutState.model_validate({**raw, "strategy": history.state.strategy})
        history.add(decision)

    def _forget(self) -> None:
        """Keep memory bounded: the oldest ended rollouts go."""
        ended = [name for name, one in self._histories.items() if one.state.phase.finished]
        for name in ended[: max(0, len(self._histories) - MAX_ROLLOUTS)]:
            del self._histories[name]


def _slim(decision: Decision) -> Decision:
    """A decision without slices and the judges that leave one voter out: most of its bytes."""
    if "slices" not in decision.evidence and "without" not in decision.evidence.get(WHOLE, {}):
        return decision
    evidence = {name: part for name, part in decision.evidence.items() if name != "slices"}
    if WHOLE in evidence:
        evidence[WHOLE] = {
            name: part for name, part in evidence[WHOLE].items() if name != "without"
        }
    return decision.model_copy(update={"evidence": evidence})


def age(decision: Decision) -> tuple[int, int]:
    """Key that sorts decisions by age."""
    return decision.order
