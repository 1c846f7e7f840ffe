"""Events of the router: one per request, with all its attempts."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.events.base import (
    AnswerTurn,
    Context,
    Identifier,
    Message,
    OptionalIdentifier,
    PersonalEvent,
    Text,
    Tool,
    UntrainableReasons,
    prompt_text,
    unless_empty,
    was_cut,
)


class Arm(StrEnum):
    """Arm of the rollout that answered; empty outside a rollout and for explicit versions."""

    stable = "stable"
    candidate = "candidate"
    fallback = "fallback"
    none = ""


class Outcome(StrEnum):
    """Outcome of an attempt. `crash` means the connection to the engine was lost."""

    ok = "ok"
    client_error = "client_error"
    server_error = "server_error"
    timeout = "timeout"
    crash = "crash"
    cancelled = "cancelled"


class Purpose(StrEnum):
    """Purpose of a request. Only `live` traffic is split at random and judged."""

    live = "live"
    explicit = "explicit"
    comparison = "comparison"
    evaluation = "evaluation"


OPERATIONS_ONLY = frozenset(("embeddings", "messages"))
"""Values of `api` that are judged on errors and latency alone: nothing else is read from them."""


class FilterAction(StrEnum):
    """What the content filter on output does where a rule finds something."""

    flag = "flag"
    """Nothing but say so."""
    mask = "mask"
    """Replace what was found."""
    block = "block"
    """Refuse the answer."""


class FilterResult(BaseModel):
    """What the content filter found in an answer; texts, as an enumeration could not gain a value."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    action: str = Field(max_length=32, description="the severest that was taken: of FilterAction")
    rules: tuple[Identifier, ...] = Field(max_length=64, description="names of the rules")


class Attempt(BaseModel):
    """One try at an engine. The last attempt of a request is the one that answered."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    version: Identifier
    arm: Arm
    outcome: Outcome
    status: int = Field(description="HTTP status of the engine; 0: no response")
    duration_ms: float
    error: str = Field(default="", max_length=500)


class AppliedSettings(BaseModel):
    """What a version's settings made of a request; the version's record has the texts."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    engine_model: Identifier = Field(description="the model's name in the engine's request")
    system_sha256: str = unless_empty(
        "", max_length=64, description="of the version's system prompt; empty: none was put in"
    )
    fields: tuple[Identifier, ...] = unless_empty(
        (), description="request fields whose values are the version's"
    )


class InteractionRecorded(PersonalEvent):
    """One request to the router with all its attempts; redacted. Key: trace_id."""

    ce_type: ClassVar[str] = "ratchet.interaction.recorded.v1"
    trace_id: Identifier
    tenant: Identifier
    model: Identifier
    version: Identifier
    arm: Arm
    rollout: OptionalIdentifier
    purpose: Purpose
    user_id: OptionalIdentifier = ""
    context: Context = Context()
    endpoint: Literal["chat", "completions"]
    api: OptionalIdentifier = unless_empty(
        "",
        description="the API that was asked where it is not the endpoint's own: responses, embeddings, messages",
    )
    stream: bool
    messages: tuple[Message, ...] = Field(description="chat turns; a prompt is one user turn")
    tools: tuple[Tool, ...] = unless_empty(())
    response_format: Text = unless_empty("", description="JSON as asked for; empty: any text")
    applied_settings: AppliedSettings | None = unless_empty(
        None, description="messages, tools and response_format are the client's own"
    )
    holdout: OptionalIdentifier = unless_empty(
        "", description="the reference version, where the user is held out; its arm is empty"
    )
    completion: Text = Field(description="the answer's text; of tool calls alone, these as JSON")
    answer: AnswerTurn = unless_empty(None)
    untrainable: UntrainableReasons = unless_empty(())
    api_key: OptionalIdentifier = unless_empty(
        "", description="hash of the id of the API key that asked (shared/voters.py)"
    )
    output_filter: FilterResult | None = unless_empty(
        None, description="completion and answer are what the model wrote, not what was shown"
    )
    finish_reason: str = Field(default="", max_length=64)
    engine_id: OptionalIdentifier = Field(
        default="",
        description="id the engine gave its answer; clients are told the trace_id instead",
    )
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcome: Outcome
    attempts: tuple[Attempt, ...]
    started_at: AwareDatetime
    duration_ms: float
    ttft_ms: float | None = None
    max_gap_ms: float | None = None
    overhead_ms: float = 0.0
    redactions: dict[str, int] = Field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The conversation as one text: the last user turn alone when it is the only one."""
        return prompt_text(self.messages)

    @property
    def can_be_asked_again(self) -> bool:
        """Whether it is a user's chat that says all that was asked, whatever became of it.

        One whose texts are still encrypted does not: their key is destroyed, or the reader has none.
        """
        return (
            self.purpose is Purpose.live
            and self.endpoint == "chat"
            and bool(self.messages)
            and self.messages[-1].role == "user"
            and not self.untrainable
            and not self.response_format
            and self.encrypted is None
        )

    @property
    def cut(self) -> bool:
        """Generation was truncated: it reached the token limit, or the stream broke off."""
        return self.outcome is not Outcome.ok or was_cut(self.finish_reason)
