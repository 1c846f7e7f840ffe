"""Bodies of the control API's requests about rollouts; a field that is none is an error."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.events.base import Identifier, OptionalIdentifier
from shared.contracts.events.rollouts import MAX_HOLDOUT


class StartRequest(BaseModel):
    """Begin a rollout."""

    model_config = ConfigDict(extra="forbid")
    model: Identifier
    candidate: Identifier
    strategy: str | dict[str, Any] | None = Field(
        default=None, description="name of a strategy file, or a strategy; absent: the default"
    )
    supersede: bool = False
    again: bool = Field(default=False, description="start a version that was rejected before")
    unevaluated: bool = Field(
        default=False, description="start though the strategy requires a passed evaluation"
    )
    one_tenant: bool = Field(
        default=False,
        description="start though one tenant gave more than half of its data; by an approver's key",
    )
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(max_length=1000)] = ""


class TrafficRequest(BaseModel):
    """What a model's users do, and how its stable version fares."""

    model_config = ConfigDict(extra="forbid")
    requests_per_s: float = Field(gt=0, le=1e6)
    feedback_share: float = Field(default=0.05, ge=0, le=1)
    error_rate: float = Field(default=0.005, gt=0, lt=1)
    score: float = Field(default=0.7, gt=0, lt=1)


class ExplainRequest(BaseModel):
    """A strategy, and the traffic to explain it by; none: only whether it is valid."""

    model_config = ConfigDict(extra="forbid")
    strategy: str | dict[str, Any]
    traffic: TrafficRequest | None = None
    model: Identifier | None = Field(default=None, description="its present traffic")


class CommandRequest(BaseModel):
    """Who wants it, and why."""

    model_config = ConfigDict(extra="forbid")
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(max_length=1000)] = ""
    full: bool = Field(default=False, description="promote: make the candidate stable at once")


class RetireRequest(BaseModel):
    """Take a version out of the engines and of the queue, until somebody starts it."""

    model_config = ConfigDict(extra="forbid")
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class HoldoutRequest(BaseModel):
    """Keep a share of a model's users on its reference version, for as long as it is set."""

    model_config = ConfigDict(extra="forbid")
    model: Identifier
    share: float = Field(
        ge=0, le=MAX_HOLDOUT / 100, description="percent of the users; 0 ends the holdout"
    )
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(min_length=1, max_length=1000)]
