"""Deployments of versions: when each got traffic, and as what. Folded from routing states. Pure."""

from __future__ import annotations

from collections import deque
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from shared.registry.routing import RoutingState

MAX_DEPLOYMENTS = 100
"""Kept of each version, the newest ones."""

Role = Literal["stable", "canary", "holdout"]
"""`holdout`: the reference version of the held-out users."""


class Deployment(BaseModel):
    """A stretch of time in which a version got traffic; `until` is None while it does."""

    model_config = ConfigDict(frozen=True)
    role: Role
    rollout: str = ""
    since: AwareDatetime
    until: AwareDatetime | None = None


class Deployments:
    """Feed it the routing states of all models in log order."""

    def __init__(self) -> None:
        self._of: dict[str, deque[Deployment]] = {}
        self._present: dict[tuple[str, Role], str] = {}

    def apply(self, state: RoutingState) -> None:
        """Note who gets traffic from this state on. A candidate without weight gets none."""
        self._set(state, "stable", state.stable)
        self._set(state, "canary", state.candidate if state.weight else "")
        self._set(state, "holdout", state.reference if state.holdout else "")

    def of(self, version: str) -> tuple[Deployment, ...]:
        """A version's deployments, oldest first."""
        return tuple(self._of.get(version, ()))

    def _set(self, state: RoutingState, role: Role, version: str) -> None:
        before = self._present.get((state.model, role), "")
        if before == version:
            return
        if before:
            ended = self._of[before]
            open_ones = (n for n in reversed(range(len(ended))) if ended[n].role == role)
            # A later stretch in another role may have pushed it out.
            if (place := next(open_ones, None)) is not None:
                ended[place] = ended[place].model_copy(update={"until": state.at})
        self._present[state.model, role] = version
        if version:
            begun = Deployment(
                role=role,
                rollout=state.rollout if role == "canary" else "",
                since=state.at,
            )
            self._of.setdefault(version, deque(maxlen=MAX_DEPLOYMENTS)).append(begun)
