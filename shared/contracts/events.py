"""Event models: one class per JSON value that travels on a topic.

Readers ignore fields they do not know and every field added later has a default, so old readers
read new events and new readers read old ones (FULL_TRANSITIVE). Times are UTC, durations are
milliseconds, scores are in [0, 1], weights are basis points 0-10000.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

MAX_TEXT = 100_000
"""Longest prompt, completion or correction in characters."""
MAX_ID = 200
"""Longest identifier in characters."""
WEIGHT_SCALE = 10_000
"""Basis points of full traffic."""

Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]+$")]
OptionalIdentifier = Annotated[str, Field(max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]*$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Cut = Annotated[
    bool, Field(description="the answer did not end by itself, so its end is nobody's wish")
]


class Event(BaseModel):
    """A value on a topic. `ce_type` is its CloudEvents type."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_enum_values=False)
    ce_type: ClassVar[str]

    def to_json(self) -> bytes:
        """The value as it travels: compact JSON in UTF-8."""
        return self.model_dump_json().encode()


class Arm(StrEnum):
    """Which side of a rollout answered; empty outside one and for explicit versions."""

    stable = "stable"
    candidate = "candidate"
    fallback = "fallback"
    none = ""


class Outcome(StrEnum):
    """How an attempt ended. `crash` means the connection to the engine was lost."""

    ok = "ok"
    client_error = "client_error"
    server_error = "server_error"
    timeout = "timeout"
    crash = "crash"
    cancelled = "cancelled"


class Purpose(StrEnum):
    """Why a request was made. Only `live` traffic is split at random and judged."""

    live = "live"
    explicit = "explicit"
    comparison = "comparison"
    evaluation = "evaluation"


class Message(BaseModel):
    """One chat turn, text only as stored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    role: str = Field(max_length=32)
    content: Text


class Context(BaseModel):
    """Where a request or feedback came from; every field may be empty."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    session_id: OptionalIdentifier = ""
    locale: OptionalIdentifier = ""
    segment: OptionalIdentifier = ""
    category: OptionalIdentifier = ""
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)


class Attempt(BaseModel):
    """One try at an engine. The last attempt of a request is the one that answered."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    version: Identifier
    arm: Arm
    outcome: Outcome
    status: int = Field(description="HTTP status of the engine; 0 where none came")
    duration_ms: float
    error: str = Field(default="", max_length=500)


class InteractionRecorded(Event):
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
    stream: bool
    messages: tuple[Message, ...] = Field(description="chat turns; a prompt is one user turn")
    completion: Text
    finish_reason: str = Field(default="", max_length=64)
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
    def cut(self) -> bool:
        """The completion did not end by itself: its tokens ran out, or the stream broke off."""
        return self.outcome is not Outcome.ok or was_cut(self.finish_reason)


class FeedbackType(StrEnum):
    """Feedback types of requirement F1."""

    thumbs_up = "thumbs_up"
    thumbs_down = "thumbs_down"
    rating = "rating"
    text_correction = "text_correction"
    preference = "preference"
    demonstration = "demonstration"
    comment = "comment"


class Correction(BaseModel):
    """What the model wrote and what it should have written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    original: Text = ""
    corrected: Text = Field(min_length=1)


class Preference(BaseModel):
    """Two versions' answers to one prompt, the better one first."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chosen: Text = Field(min_length=1)
    rejected: Text = Field(min_length=1)
    chosen_version: OptionalIdentifier = ""
    rejected_version: OptionalIdentifier = ""


class FeedbackSubmitted(Event):
    """One revision of one person's feedback on one interaction. Key: trace_id.

    `value` by type: thumbs_* null; rating 1-5; text_correction Correction; preference Preference;
    demonstration and comment a text.
    """

    ce_type: ClassVar[str] = "ratchet.feedback.submitted.v1"
    feedback_id: Identifier
    revision: int = Field(default=0, ge=0, le=2**31 - 1)
    trace_id: Identifier
    tenant: Identifier
    type: FeedbackType
    value: int | Correction | Preference | str | None = None
    user_id: OptionalIdentifier = ""
    version: OptionalIdentifier = ""
    prompt: Text = ""
    completion: Text = ""
    context: Context = Context()
    submitted_at: AwareDatetime
    anonymous: bool = False

    @model_validator(mode="after")
    def _value_fits_type(self) -> FeedbackSubmitted:
        check_value(self.type, self.value)
        return self

    @property
    def score(self) -> float | None:
        """Satisfaction in [0, 1], or None for a type that carries none (design section 7)."""
        return satisfaction(self.type, self.value)


class FeedbackWithdrawn(Event):
    """A revision that takes feedback back. Key: trace_id."""

    ce_type: ClassVar[str] = "ratchet.feedback.withdrawn.v1"
    feedback_id: Identifier
    revision: int = Field(ge=1, le=2**31 - 1)
    trace_id: Identifier
    tenant: Identifier
    type: FeedbackType
    user_id: OptionalIdentifier = ""
    submitted_at: AwareDatetime


class Choice(StrEnum):
    """What a rater said of two answers side by side."""

    left = "left"
    right = "right"
    tie = "tie"
    both_bad = "both_bad"


class Side(BaseModel):
    """One answer of a comparison."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    version: Identifier
    trace_id: Identifier
    completion: Text
    cut: Cut = False


class VoteCast(Event):
    """One vote on a blind comparison, self-contained. Key: comparison_id (also its trace_id)."""

    ce_type: ClassVar[str] = "ratchet.vote.cast.v1"
    comparison_id: Identifier
    revision: int = Field(default=0, ge=0, le=2**31 - 1)
    tenant: Identifier
    model: Identifier
    messages: tuple[Message, ...]
    left: Side
    right: Side
    choice: Choice
    user_id: OptionalIdentifier = ""
    context: Context = Context()
    panel: Literal["", "judge"] = Field(
        default="", description="judge: kept for the evaluation judge, never trained on"
    )
    submitted_at: AwareDatetime
    anonymous: bool = False


class PairSource(StrEnum):
    """Where a preference pair came from."""

    vote = "vote"
    correction = "correction"
    preference = "preference"
    ratings = "ratings"
    demonstration = "demonstration"
    synthetic = "synthetic"


class PreferencePair(Event):
    """Chosen and rejected answers to one prompt, self-contained. Key: pair_id."""

    ce_type: ClassVar[str] = "ratchet.preference.pair.v1"
    pair_id: Identifier
    tenant: Identifier
    model: Identifier
    messages: tuple[Message, ...]
    chosen: Text
    rejected: Text
    chosen_cut: Cut = False
    rejected_cut: Cut = False
    chosen_version: OptionalIdentifier = ""
    rejected_version: OptionalIdentifier = ""
    source: PairSource
    panel: Literal["", "judge"] = ""
    causes: tuple[str, ...] = Field(description="feedback_id:revision of each cause")
    traces: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()
    context: Context = Context()
    created_at: AwareDatetime


class UnpairedExample(Event):
    """One answer with a good/bad label (KTO), self-contained. Key: pair_id."""

    ce_type: ClassVar[str] = "ratchet.preference.unpaired.v1"
    pair_id: Identifier
    tenant: Identifier
    model: Identifier
    messages: tuple[Message, ...]
    completion: Text
    cut: Cut = False
    label: bool
    version: OptionalIdentifier = ""
    causes: tuple[str, ...]
    raters: tuple[str, ...] = ()
    context: Context = Context()
    created_at: AwareDatetime


class PreferenceRetracted(Event):
    """Takes a pair or example back: its feedback was edited, withdrawn or erased. Key: pair_id."""

    ce_type: ClassVar[str] = "ratchet.preference.retracted.v1"
    pair_id: Identifier
    tenant: Identifier
    reason: str = Field(max_length=200)
    created_at: AwareDatetime


class RatedAnswer(Event):
    """A scored answer, to build same-prompt pairs. Key: hash of (tenant, normalised prompt)."""

    ce_type: ClassVar[str] = "ratchet.rated.answer.v1"
    rated_id: Identifier = Field(description="uuid5 of the feedback revision that caused it")
    prompt_key: Identifier
    tenant: Identifier
    model: Identifier
    trace_id: Identifier
    feedback_id: Identifier
    revision: int
    messages: tuple[Message, ...]
    completion: Text
    cut: Cut = False
    version: Identifier
    score: float | None = Field(description="satisfaction in [0, 1]; None retracts")
    user_id: OptionalIdentifier = ""
    context: Context = Context()
    created_at: AwareDatetime


class RatedScore(Event):
    """The first scored feedback of an interaction on randomly split traffic, to be capped.

    Key: hash of (tenant, user, rollout, day), so that one place sees all of a user's scores.
    """

    ce_type: ClassVar[str] = "ratchet.rated.score.v1"
    score_id: Identifier = Field(description="uuid5 of the trace: an interaction scores once")
    cap_key: Identifier
    tenant: Identifier
    trace_id: Identifier
    version: Identifier
    arm: Arm
    rollout: OptionalIdentifier
    segment: OptionalIdentifier = Field(default="", description="one of the configured values")
    score: float = Field(ge=0.0, le=1.0)
    created_at: AwareDatetime


class ExampleJoined(Event):
    """Interaction with its feedback, for queries. Key: trace_id (compacted)."""

    ce_type: ClassVar[str] = "ratchet.example.joined.v1"
    trace_id: Identifier
    tenant: Identifier
    model: Identifier
    version: Identifier
    messages: tuple[Message, ...]
    completion: Text
    context: Context = Context()
    started_at: AwareDatetime
    feedback: tuple[FeedbackSubmitted, ...]
    updated_at: AwareDatetime


class QualityWindow(Event):
    """Figures of one window, grouped by the interaction's start.

    Key: version+window+start+partition. Every figure is a numerator and a denominator, summed
    over partitions by the reader; satisfaction's numerator sums scores in [0, 1].
    """

    ce_type: ClassVar[str] = "ratchet.quality.window.v1"
    version: str
    window: Literal["1m", "5m", "1h", "1d"]
    start: AwareDatetime
    partition: int
    interactions: int
    errors: int
    interactions_with_feedback: int
    feedback: int
    positive: int
    negative: int
    corrections: int
    score_sum: float
    score_count: int


class Tick(Event):
    """The stream's clock: one per partition per second."""

    ce_type: ClassVar[str] = "ratchet.tick.v1"
    at: AwareDatetime
    partition: int


class GenerationRequested(Event):
    """Work for the batch worker, lowest priority. Key: request_id."""

    ce_type: ClassVar[str] = "ratchet.generation.requested.v1"
    request_id: Identifier
    batch_id: Identifier
    purpose: Literal["shadow", "evaluation"]
    version: Identifier
    messages: tuple[Message, ...]
    max_tokens: int = Field(default=64, ge=1, le=8192)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    seed: int | None = None
    expires_at: AwareDatetime
    trace_id: OptionalIdentifier = ""


class GenerationFinished(Event):
    """What the batch worker made of one request. Key: request_id."""

    ce_type: ClassVar[str] = "ratchet.generation.finished.v1"
    request_id: Identifier
    batch_id: Identifier
    purpose: Literal["shadow", "evaluation"]
    version: Identifier
    outcome: Literal["ok", "failed", "expired"]
    completion: Text = ""
    finish_reason: str = ""
    completion_tokens: int = 0
    duration_ms: float = 0.0
    error: str = Field(default="", max_length=500)
    finished_at: AwareDatetime


class TrainingMethod(StrEnum):
    """How a version is made. `reward` makes a judge, not a version."""

    sft = "sft"
    dpo = "dpo"
    reward = "reward"


class TrainingRequested(Event):
    """A job: make the next version of a model. Key: job_id."""

    ce_type: ClassVar[str] = "ratchet.training.requested.v1"
    job_id: Identifier
    model: Identifier
    method: TrainingMethod
    version: OptionalIdentifier = Field(default="", description="name to give; empty: the next one")
    parent: OptionalIdentifier = Field(default="", description="empty: the stable version")
    base: OptionalIdentifier = Field(default="", description="hub id or path; empty: the parent's")
    dataset_uri: str = Field(
        default="", max_length=2000, description="JSONL to import; empty: a snapshot of the log"
    )
    hyperparameters: dict[str, Any] = Field(default_factory=dict, max_length=64)
    seed: int = 0
    override_gate: bool = False
    reason: str = Field(default="", max_length=1000)
    actor: Identifier
    requested_at: AwareDatetime

    @model_validator(mode="after")
    def _override_has_reason(self) -> TrainingRequested:
        if self.override_gate and not self.reason.strip():
            raise ValueError("reason: required with override_gate, it is kept in the record")
        return self


class RunPhase(StrEnum):
    """Where a training run is."""

    accepted = "accepted"
    snapshot = "snapshot"
    training = "training"
    judging = "judging"
    gating = "gating"
    succeeded = "succeeded"
    rejected = "rejected"
    failed = "failed"


class TrainingProgress(Event):
    """Progress or result of a job. Key: job_id."""

    ce_type: ClassVar[str] = "ratchet.training.progress.v1"
    job_id: Identifier
    model: Identifier
    method: TrainingMethod
    version: OptionalIdentifier = ""
    phase: RunPhase
    attempt: int = 1
    progress: float = Field(default=0.0, ge=0.0, le=1.0)
    metrics: dict[str, float] = Field(default_factory=dict)
    message: str = Field(default="", max_length=2000)
    at: AwareDatetime


DeadLetterReason = Literal["schema", "too_large", "unknown_type", "conflict", "handler", "policy"]


class DeadLetter(Event):
    """A record that could not be read. Key: source topic. The body is redacted text."""

    ce_type: ClassVar[str] = "ratchet.dead-letter.v1"
    source_topic: Identifier
    source_partition: int
    source_offset: int
    source_key: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    reason: DeadLetterReason
    detail: str = Field(max_length=2000)
    body: str
    service: Identifier
    at: AwareDatetime


def prompt_text(messages: tuple[Message, ...]) -> str:
    """A conversation as one text: a lone user turn as it is, else `role: content` lines."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in messages)


_ENDED = frozenset({"", "stop", "tool_calls", "function_call"})


def was_cut(finish_reason: str) -> bool:
    """An engine's finish_reason says that the answer did not end by itself; empty says nothing."""
    return finish_reason not in _ENDED


def check_value(kind: FeedbackType, value: object) -> None:
    """Raise ValueError naming the rule when `value` does not fit the feedback type."""
    match kind:
        case FeedbackType.thumbs_up | FeedbackType.thumbs_down:
            if value is not None:
                raise ValueError(f"value: must be absent for {kind}; send the type alone")
        case FeedbackType.rating:
            if type(value) is not int or not 1 <= value <= 5:
                raise ValueError(
                    "value: a rating is a whole number from 1 to 5; "
                    "to have it clamped, ask with ?clamp=true"
                )
        case FeedbackType.text_correction:
            if not isinstance(value, Correction):
                raise ValueError(  # noqa: TRY004 pydantic reports ValueError only
                    'value: must be {"original": …, "corrected": …}'
                )
        case FeedbackType.preference:
            if not isinstance(value, Preference):
                raise ValueError(  # noqa: TRY004 pydantic reports ValueError only
                    'value: must be {"chosen": …, "rejected": …}'
                )
        case FeedbackType.demonstration | FeedbackType.comment:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"value: must be a non-empty text for {kind}")


def satisfaction(kind: FeedbackType, value: object) -> float | None:
    """Satisfaction in [0, 1]: thumbs 1/0, rating (r-1)/4, correction 0, else None."""
    match kind:
        case FeedbackType.thumbs_up:
            return 1.0
        case FeedbackType.thumbs_down | FeedbackType.text_correction:
            return 0.0
        case FeedbackType.rating if isinstance(value, int):
            return (value - 1) / 4
        case _:
            return None


def utc(moment: datetime) -> str:
    """ISO 8601 in UTC with a Z, as every event and header writes it."""
    return moment.isoformat().replace("+00:00", "Z")
