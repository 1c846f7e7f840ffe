"""HTTP interface of scores and moderated generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field

from services.inference.agent import Agent
from services.inference.errors import InferenceError, UnknownAdapter, VersionNotAllowed
from services.inference.generation_spans import GenerationSpans
from services.inference.moderation import ModerationRequest, Moderator
from services.inference.scorer import Scorer
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Name, OptionalIdentifier
from shared.http.openapi import problem_responses
from shared.http.streaming import StreamedResponse
from shared.keys import ApiKey, KeyRing
from shared.observability import span_attributes as names
from shared.observability.spans import AttributeValue
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.quotas import Quotas
from shared.registry.versions import Registry, Version

GENERATION_PATHS = frozenset({"/v1/score", "/v1/moderated"})
MAX_GENERATION_BYTES = 4 * 2**20
"""Bytes of a request's body on these paths."""
MAX_ANSWERS = 256
"""Answers that one request may have scored."""
MAX_TURNS = 256
MAX_CHARS = 262_144
SCORE_TIMEOUT_S = 120.0
"""The first request loads the reward model."""


class TextTurn(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_CHARS)


class AnsweredPrompt(BaseModel):
    """An answer with the conversation that it answers."""

    model_config = ConfigDict(extra="forbid")
    messages: list[TextTurn] = Field(min_length=1, max_length=MAX_TURNS)
    completion: str = Field(max_length=MAX_CHARS)


class ScoreRequest(BaseModel):
    """Answers to score, one or a batch."""

    model_config = ConfigDict(extra="forbid")
    model: Name
    items: list[AnsweredPrompt] = Field(min_length=1, max_length=MAX_ANSWERS)


class ScoreAnswer(BaseModel):
    """A score for each item, in order; higher is better, and only differences mean something.

    `uncertainties` are the standard deviations of the reward model's heads, empty with one head.
    """

    reward_model: str
    scores: list[float]
    uncertainties: list[float] = Field(default_factory=list)


class ModeratedRequest(BaseModel):
    """A conversation to answer by writer, critic and reward model."""

    model_config = ConfigDict(extra="forbid")
    model: Name
    messages: list[TextTurn] = Field(min_length=1, max_length=MAX_TURNS)
    max_tokens: int = Field(default=256, ge=1, le=8192)
    temperature: float = Field(default=0.7, ge=0, le=2)
    stream: bool = False
    user: OptionalIdentifier = Field(default="", description="who asks; a kept pair names them")


class ScoredText(BaseModel):
    """An answer with its score, None where nothing scored it, and who wrote it."""

    text: str
    score: float | None
    version: str


class ModeratedAnswer(BaseModel):
    """The better answer with both scores; `fallback` says why there is but the writer's."""

    stage: Literal["result"]
    id: str
    model: str
    text: str
    chosen: Literal["writer", "critic"]
    writer: ScoredText
    critic: ScoredText | None
    margin: float | None
    reward_model: str
    fallback: str


def generation_router(
    agent: Agent,
    registry: Registry,
    scorer: Scorer,
    moderator: Moderator,
    keys: KeyRing,
    quotas: Quotas,
    spans: GenerationSpans,
    pseudonyms: UserPseudonyms = AS_THEY_COME,
) -> APIRouter:
    """Routes of the scorer and of moderated generation; scores count against a key's own limits."""
    router = APIRouter(prefix="/v1")
    refusals = problem_responses(400, 401, 403, 404, 408, 413, 422, 429, 502, 503, 504)

    @router.post("/score", responses=refusals)
    async def score(
        body: ScoreRequest,
        authorization: Annotated[str | None, Header()] = None,
        traceparent: Annotated[str | None, Header()] = None,
    ) -> ScoreAnswer:
        """Score answers by the newest published reward model of a model."""
        key = keys.authenticate(authorization, Permission.infer)
        slot = quotas.admit(key)
        attributes: dict[str, AttributeValue] = {
            names.REQUEST_MODEL: body.model,
            names.TENANT: key.tenant,
            names.ITEMS: len(body.items),
        }
        try:
            with spans.request(f"score {body.model}", traceparent, attributes):
                rows = [item.model_dump() for item in body.items]
                found = await scorer.score(body.model, rows, timeout_s=SCORE_TIMEOUT_S)
                attributes[names.REWARD_MODEL] = found.reward_model
        finally:
            quotas.leave(slot)
        return ScoreAnswer(
            reward_model=found.reward_model,
            scores=list(found.values),
            uncertainties=list(found.uncertainties),
        )

    progress = {"text/event-stream": {"schema": {"type": "string"}}}

    @router.post(
        "/moderated",
        responses={**refusals, 200: {"content": progress}},
        response_model=ModeratedAnswer,
    )
    async def moderated(
        body: ModeratedRequest,
        authorization: Annotated[str | None, Header()] = None,
        traceparent: Annotated[str | None, Header()] = None,
    ) -> Any:
        """Answer by writer and critic; the reward model chooses. `stream` sends the progress."""
        key = keys.authenticate(authorization, Permission.infer)
        model, version = served(registry, agent, body.model, key)
        asked = ModerationRequest(
            tenant=key.tenant,
            model=model,
            version=version,
            messages=[turn.model_dump() for turn in body.messages],
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            user_id=pseudonyms.of(key.tenant, body.user),
            traceparent=traceparent,
        )
        events = moderator.run(asked)
        if body.stream:
            return StreamedResponse(server_sent(events), media_type="text/event-stream")
        return [event async for event in events][-1]

    return router


def served(registry: Registry, agent: Agent, name: str, key: ApiKey) -> tuple[str, str]:
    """Model and version that a name asks for: a version, or a model's stable one.

    Raises:
        UnknownAdapter: there is none, or it may not serve here.
        VersionNotAllowed: it is a version, and the key may name none.

    """
    named = registry.get(name)
    if named is not None and not key.explicit_versions:
        raise VersionNotAllowed(
            f"model: the key may not name versions; ask for the model {named.record.model!r}"
        )
    version = serving(registry, agent, name)
    return version.record.model, version.record.version


def serving(registry: Registry, agent: Agent, name: str) -> Version:
    """The version that a name asks for, or a model's stable one.

    Raises:
        UnknownAdapter: there is none, or it may not serve here.

    """
    version = registry.get(name) or registry.stable(name)
    if version is None or not agent.ready(version.record.version):
        raise UnknownAdapter(f"model: {name} has no version that is ready here; see /v1/adapters")
    return version


async def server_sent(events: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """Events as they come; an error after the stream began is an event too."""
    try:
        async with aclosing(events):
            async for event in events:
                yield b"data: " + orjson.dumps(event) + b"\n\n"
    except InferenceError as error:
        yield b"data: " + orjson.dumps({"stage": "error", "detail": str(error)}) + b"\n\n"
