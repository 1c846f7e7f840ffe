"""Rollout records and the routing state: the fold of `rollouts.v1`.

A leader's token is the offset of its LeaderElected record. Every later record carries the token
of the leader that wrote it, and a reader of the log ignores records with another token than that of the
newest election: a leader that lost its place cannot undo what its successor decided, and a token
that no election gave counts for nothing.
"""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import WEIGHT_SCALE, ModelName, Name, OptionalName
from shared.contracts.events.rollouts import MAX_HOLDOUT, Decision, Phase


class RoutingState(BaseModel):
    """What a router needs to know of one model."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    model: ModelName
    stable: Name
    candidate: str = ""
    rollout: str = ""
    phase: Phase = Phase.healthy
    weight: int = Field(default=0, ge=0, le=WEIGHT_SCALE)
    holdout: int = Field(default=0, ge=0, le=MAX_HOLDOUT)
    """Basis points of the users who stay on the reference version."""
    reference: OptionalName = ""
    shadow: int = Field(default=0, ge=0, le=WEIGHT_SCALE)
    token: int
    seq: int
    at: AwareDatetime

    @property
    def order(self) -> tuple[int, int]:
        """Sorts states of one model by age, newest highest."""
        return (self.token, self.seq)

    @classmethod
    def of(cls, decision: Decision) -> RoutingState:
        """The state that a decision sets. A finished rollout routes nothing to a candidate."""
        finished = decision.phase.finished
        return cls(
            model=decision.model,
            stable=decision.stable,
            candidate="" if finished else decision.candidate,
            rollout="" if finished else decision.rollout_id,
            phase=decision.phase,
            weight=0 if finished else decision.weight,
            holdout=decision.holdout,
            reference=decision.holdout_reference,
            shadow=0 if finished else decision.shadow,
            token=decision.token,
            seq=decision.seq,
            at=decision.at,
        )


class RoutingTable:
    """The newest routing state per model, from whichever source brings it first."""

    def __init__(self) -> None:
        self._token = -1
        self._states: dict[str, RoutingState] = {}
        self._outdated: set[str] = set()
        """Models whose next state counts, whatever its order."""

    @property
    def token(self) -> int:
        """The newest leader's token, -1 before the first election was read."""
        return self._token

    def elect(self, offset: int) -> None:
        """Take note of a LeaderElected record at this offset."""
        self._token = max(self._token, offset)

    def believes(self, token: int) -> bool:
        """Whether a record of the log has the token of the newest election, or there was none."""
        return self._token < 0 or token == self._token

    def reset(self) -> None:
        """Route on by what is known until other states come, which count whatever their order."""
        self._token = -1
        self._outdated = set(self._states)

    def put(self, state: RoutingState) -> bool:
        """Keep `state` if it is newer than what is known; returns whether it was kept.

        Only an election fences: a later leader's word on one model does not unmake an earlier
        leader's word on another, whatever order Redis and the log bring them in.
        """
        if state.token < self._token:
            return False
        known = self._states.get(state.model)
        if known is not None and state.order < known.order and state.model not in self._outdated:
            return False
        self._outdated.discard(state.model)
        self._states[state.model] = state
        return True

    def get(self, model: str) -> RoutingState | None:
        """The model's state, or None for a model without a stable version."""
        return self._states.get(model)

    def models(self) -> tuple[RoutingState, ...]:
        """All states, by model name."""
        return tuple(self._states[name] for name in sorted(self._states))
