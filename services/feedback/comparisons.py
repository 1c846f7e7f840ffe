"""Blind comparisons: two answers of unnamed versions, then one vote, stored before it counts."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from services.feedback.conversations import tools_as_stored, turns_as_stored
from services.feedback.errors import (
    AlreadyVoted,
    AnonymousVote,
    Busy,
    FeedbackError,
    Malformed,
    NotFound,
    RouterFailed,
    field_errors,
    invalid,
)
from services.feedback.matchups import MAX_SEED, Contender, Matchup, matchup, opponents
from services.feedback.metrics import FeedbackMetrics
from services.feedback.open_comparisons import Ballot, Comparison, OpenComparisons, vote
from services.feedback.pair_choice import PairChoice
from services.feedback.publisher import FeedbackPublisher, vote_record
from services.feedback.router_client import Answer, Question, RouterClient, VersionUnavailable
from services.feedback.submissions import context_of
from services.feedback.values import fields_of, json_kind
from shared.clock import Clock
from shared.contracts.events.base import Identifier, Message, OptionalIdentifier, Tool
from shared.contracts.events.intake import Label
from shared.contracts.events.votes import INFORMATIVE, PAIR_LABEL, Choice, Side
from shared.errors import FieldError
from shared.pseudonyms import AS_THEY_COME, UserPseudonyms
from shared.redaction.detection import Redact, by_rules, redacted
from shared.redaction.turns import clean_tool, clean_turn
from shared.registry.routing import RoutingState, RoutingTable
from shared.registry.versions import Registry

_Body = TypeVar("_Body", bound=BaseModel)

SAMPLING_TEMPERATURE = 1.0
"""What makes two answers of one version differ where the caller names no temperature."""
MAX_TURNS = 64
MAX_TOOLS = 64


class ComparisonRequest(BaseModel):
    """Body of `POST /v1/comparisons`."""

    model_config = ConfigDict(extra="forbid")
    model: Identifier
    messages: Annotated[
        tuple[Message, ...],
        BeforeValidator(turns_as_stored),
        Field(min_length=1, max_length=MAX_TURNS),
    ]
    tools: Annotated[
        tuple[Tool, ...], BeforeValidator(tools_as_stored), Field(max_length=MAX_TOOLS)
    ] = ()
    versions: tuple[Identifier, Identifier] | None = None
    user_id: OptionalIdentifier = ""
    metadata: dict[OptionalIdentifier, Label] = Field(default_factory=dict, max_length=16)
    panel: Literal["", "judge"] = ""
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None


class VoteRequest(BaseModel):
    """Body of `POST /v1/comparisons/{id}/vote`."""

    model_config = ConfigDict(extra="forbid")
    choice: Choice
    user_id: OptionalIdentifier = ""


class Comparisons:
    """Opens comparisons and takes their votes."""

    def __init__(
        self,
        *,
        router: RouterClient,
        store: OpenComparisons,
        publisher: FeedbackPublisher,
        routing: RoutingTable,
        registry: Registry,
        metrics: FeedbackMetrics,
        clock: Clock,
        redact: Redact,
        anonymous_votes: bool,
        max_asking: int,
        rng: random.Random | None = None,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._router = router
        self._store = store
        self._publisher = publisher
        self._routing = routing
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._redact = redact
        self._anonymous_votes = anonymous_votes
        self._max_asking = max_asking
        self._asking = 0
        self._rng = rng or random.SystemRandom()
        self._new_id = new_id

    async def open(
        self,
        body: Any,
        *,
        tenant: str,
        authorization: str = "",
        pairs: PairChoice | None = None,
    ) -> dict[str, Any]:
        """Open a comparison: ask both versions, return their answers without their names.

        With `pairs` both may answer several times, and it chooses of those answers.

        Raises:
            FeedbackError: a bad body, an unknown model, or router or store unavailable.

        """
        request = _read(ComparisonRequest, body)
        # Before anybody answers: it may refuse the request.
        context_of(request.metadata, tenant=tenant, redact=by_rules(self._redact))
        start = self._clock.monotonic()
        left, right, labels = await self._pair(request, authorization, pairs)
        comparison_id = self._new_id()

        def build(redact: Redact) -> Comparison:
            return Comparison(
                comparison_id=comparison_id,
                tenant=tenant,
                model=request.model,
                messages=turns_redacted(request.messages, redact),
                tools=tuple(
                    Tool.model_validate(clean_tool(tool.model_dump(), redact))
                    for tool in request.tools
                ),
                left=side_of(left, redact),
                right=side_of(right, redact),
                user_id=request.user_id,
                context=context_of(request.metadata | labels, tenant=tenant, redact=redact),
                panel=request.panel,
            )

        comparison = await redacted(self._redact, build)
        await self._store.put(comparison)
        self._metrics.comparison_seconds.observe(self._clock.monotonic() - start)
        return {
            "comparison_id": comparison.comparison_id,
            "left": {"text": left.text},
            "right": {"text": right.text},
        }

    async def answers(
        self, request: ComparisonRequest, authorization: str
    ) -> tuple[Answer, Answer]:
        """Two versions' answers to one question, on random sides.

        Raises:
            FeedbackError: an unknown model, as many are being asked as may be, or the router failed.

        """
        (left, *_), (right, *_) = await self._candidates(request, authorization, 1)
        return left, right

    async def answer(self, request: ComparisonRequest, authorization: str) -> Answer:
        """The answer of the stable version, or of the first that the request names.

        Raises:
            FeedbackError: as `answers`.

        """
        version = self._match(request).stand_in if not request.versions else request.versions[0]
        with self._asks(1):
            return await self._ask(_question(request), version, authorization)

    async def _pair(
        self, request: ComparisonRequest, authorization: str, pairs: PairChoice | None
    ) -> tuple[Answer, Answer, dict[str, str]]:
        """Two answers to show, and what labels say of how they were chosen."""
        wanted = pairs.candidates if pairs else 1
        left, right = await self._candidates(request, authorization, wanted)
        chosen = pairs and await pairs.most_informative(
            request.model,
            request.messages,
            [answer.text for answer in left],
            [answer.text for answer in right],
        )
        if pairs:
            (self._metrics.pairs_chosen if chosen else self._metrics.pairs_drawn).inc()
        if not chosen:
            return left[0], right[0], {}
        return left[chosen[0]], right[chosen[1]], {PAIR_LABEL: INFORMATIVE}

    async def _candidates(
        self, request: ComparisonRequest, authorization: str, wanted: int
    ) -> tuple[list[Answer], list[Answer]]:
        """So many answers of each side, fewer where others are being answered; one at least."""
        match = self._match(request)
        question = _question(request)
        if match.same_version:
            question = _sampled(question)
        with self._asks(wanted) as count:
            return await self._ask_both(question, match, authorization, count)

    @contextmanager
    def _asks(self, wanted: int) -> Generator[int]:
        count = min(wanted, self._max_asking - self._asking)
        if count < 1:
            raise Busy(
                "as many comparisons as allowed are being answered; try again", retry_after_s=2
            )
        self._asking += count
        try:
            yield count
        finally:
            self._asking -= count

    async def vote(
        self,
        comparison_id: str,
        body: Any,
        *,
        tenant: str,
        labels: Mapping[str, str] | None = None,
        pseudonyms: UserPseudonyms = AS_THEY_COME,
    ) -> dict[str, Any]:
        """Store the one vote of a comparison, then reveal its versions.

        Idempotent: the same choice by the same person gets the same response. `labels` join the
        event's context; `pseudonyms` say how the person is stored.

        Raises:
            FeedbackError: a bad body, an unknown or expired comparison, another vote before
                this one, an anonymous vote where they are off, or log or store unavailable.

        """
        request = _read(VoteRequest, body)
        comparison = await self._store.get(tenant, comparison_id)
        if comparison is None:
            raise NotFound("no such comparison, or its hour is over; open a new one")
        asker = pseudonyms.of(tenant, comparison.user_id)
        user_id = pseudonyms.of(tenant, request.user_id) or asker
        if not user_id and not self._anonymous_votes:
            raise AnonymousVote(
                "anonymous votes are off; send user_id",
                [FieldError("user_id", "is required", "send the id of the person who votes")],
            )
        ballot = Ballot(
            user_id=user_id,
            choice=request.choice,
            at=self._clock.now(),
            asker="" if asker == user_id else asker,
            labels=dict(labels or {}),
        )
        counted = await self._store.claim(comparison, ballot)
        if not counted.repeats(ballot):
            raise AlreadyVoted("this comparison has its vote; open a new one")
        if not counted.acknowledged:
            await self._publisher.store(vote_record(vote(comparison, counted)))
            await self._store.acknowledge(comparison, counted)
            self._metrics.votes[counted.choice].inc()
        return {
            "accepted": True,
            "versions": {"left": comparison.left.version, "right": comparison.right.version},
        }

    def _match(self, request: ComparisonRequest) -> Matchup:
        if request.versions is not None:
            return matchup(*request.versions, rng=self._rng)
        state = self._state(request.model)
        first, second = self.opponents(request.model)
        return matchup(first, second, rng=self._rng, stand_in=state.stable)

    def opponents(self, model: str) -> tuple[str, str]:
        """The two versions of a model that are compared where none are named.

        Raises:
            NotFound: the model has no stable version.

        """
        return opponents(self._state(model), self._registry.versions(model))

    def _state(self, model: str) -> RoutingState:
        state = self._routing.get(model)
        if state is None:
            known = ", ".join(state.model for state in self._routing.models()) or "none yet"
            raise NotFound(f"model: {model} has no stable version; send one of: {known}")
        return state

    async def _ask_both(
        self, question: Question, match: Matchup, authorization: str, count: int
    ) -> tuple[list[Answer], list[Answer]]:
        async def ask(version: str, seed: int) -> Answer:
            try:
                return await self._ask(question, version, authorization, seed)
            except (NotFound, RouterFailed):
                # An engine may not hold the older version any more, which nobody asked for by name.
                if match.stand_in and match.stand_in != version:
                    return await self._ask(_sampled(question), match.stand_in, authorization, seed)
                raise

        async def more(version: str, seed: int) -> Answer | None:
            try:
                return await ask(version, seed)
            except FeedbackError:
                return None  # a pair is there without it

        def of(side: Contender, group: asyncio.TaskGroup) -> list[asyncio.Task[Answer | None]]:
            seeds = [(side.seed + number) % MAX_SEED for number in range(count)]
            return [
                group.create_task((more if number else ask)(side.version, seed))
                for number, seed in enumerate(seeds)
            ]

        try:
            async with asyncio.TaskGroup() as group:
                sides = [of(side, group) for side in (match.left, match.right)]
        except BaseExceptionGroup as failures:
            # One failure ends both sides, and the caller is told the first.
            raise failures.exceptions[0] from None
        left, right = ([found for task in side if (found := task.result())] for side in sides)
        return left, right

    async def _ask(
        self, question: Question, version: str, authorization: str, seed: int = 0
    ) -> Answer:
        try:
            return await self._router.answer(question, version, seed, authorization=authorization)
        except VersionUnavailable as error:
            raise NotFound(
                f"version {version} is not served: {error}; ratchet versions list shows them"
            ) from error


def turns_redacted(messages: Sequence[Message], redact: Redact) -> tuple[Message, ...]:
    """Turns with their texts redacted."""
    return tuple(_clean(turn, redact) for turn in messages)


def side_of(answer: Answer, redact: Redact) -> Side:
    """An answer as it is stored, redacted."""
    return Side(
        version=answer.version,
        trace_id=answer.trace_id,
        completion=redact(answer.text),
        answer=None if answer.turn is None else _clean(answer.turn, redact),
        cut=answer.cut,
    )


def _clean(turn: Message, redact: Redact) -> Message:
    return Message.model_validate(clean_turn(turn.model_dump(), redact))


def _question(request: ComparisonRequest) -> Question:
    return Question(
        messages=request.messages,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        user_id=request.user_id,
        metadata=request.metadata,
        tools=request.tools,
    )


def _sampled(question: Question) -> Question:
    """The question with a temperature, so that one version gives two answers."""
    if question.temperature is not None:
        return question
    return replace(question, temperature=SAMPLING_TEMPERATURE)


def _read(model: type[_Body], body: Any) -> _Body:
    given = fields_of(body)
    if given is None:
        raise Malformed(f"the body is a JSON object, not {json_kind(body)}; send {{…}}")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(field_errors(error)) from None
