"""Moderated generation: a writer answers, a critic rewrites, a reward model returns the better one.

Every stage has a deadline. Once the writer has answered there is always an answer: where the critic
or the scores are missing, the writer's is returned and the result says why.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from services.inference.engine import EngineClient
from services.inference.errors import InferenceError
from services.inference.generation_spans import GenerationSpans
from services.inference.metrics import InferenceMetrics
from services.inference.scorer import Scorer
from shared.clock import Clock
from shared.contracts.events.base import Context, Message
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.events.versions import SettingsRecord
from shared.contracts.topics import PREFERENCES
from shared.kafka.log import EventLog, LogUnavailable
from shared.observability import span_attributes as names
from shared.observability.events import Unavailable
from shared.observability.spans import AttributeValue
from shared.observability.tracing import parse_traceparent
from shared.redaction.detection import Redact, redacted
from shared.registry.served_settings import chat_body, put_before

log = structlog.get_logger(__name__)

CRITIC = (
    "You review an assistant's answer before a customer reads it. Rewrite it where it is wrong, "
    "unclear, impolite or against the policy; else repeat it unchanged. Write the answer only."
)
NAMESPACE = uuid.UUID("7b6c1c1e-9a0f-4ed2-8a4c-5a8de3d1d0f4")
PUBLISH_TIMEOUT_S = 5.0

Turn = Mapping[str, str]


@dataclass(frozen=True)
class ModerationRules:
    """Business policy, deadlines in seconds, and whether pairs are kept."""

    policy: str
    critic: str
    """Model or version that rewrites; empty: the one that wrote."""
    writer_s: float
    critic_s: float
    score_s: float
    pairs: bool


@dataclass(frozen=True)
class ModerationRequest:
    """What is to be answered, by which version of which model, for whom."""

    tenant: str
    model: str
    version: str
    messages: Sequence[Turn]
    max_tokens: int
    temperature: float
    user_id: str = ""
    """Who asked, as stored; the pair names the person, so that an erasure finds it."""
    traceparent: str | None = None
    """The request's header, valid or not."""


class Moderator:
    """Runs the three stages at the engine and the scorer."""

    def __init__(
        self,
        *,
        client: EngineClient,
        critic_client: EngineClient | None,
        scorer: Scorer,
        serving: Callable[[str], str],
        settings: Callable[[str], SettingsRecord | None],
        event_log: EventLog,
        rules: ModerationRules,
        redact: Redact,
        clock: Clock,
        metrics: InferenceMetrics,
        spans: GenerationSpans,
    ) -> None:
        """Wire the stages.

        Args:
            client: Of the engine.
            critic_client: Of the critic's own endpoint; None: the engine's.
            scorer: Has the reward model.
            serving: The version ready here that a model's or a version's name asks for; raises
                `UnknownAdapter`.
            settings: What a version serves beside or without an adapter.
            event_log: Takes the pairs.
            rules: Policy, critic, deadlines.
            redact: Applied to the texts of pairs.
            clock: Dates the pairs.
            metrics: Count who won, and with which scores.
            spans: Takes the spans of requests and stages.

        """
        self._spans = spans
        self._client = client
        self._critic_client = critic_client
        self._scorer = scorer
        self._serving = serving
        self._settings = settings
        self._log = event_log
        self._rules = rules
        self._redact = redact
        self._clock = clock
        self._metrics = metrics

    async def run(self, asked: ModerationRequest) -> AsyncGenerator[dict[str, Any]]:
        """Progress, one event a stage, and last the result.

        Raises:
            InferenceError: the writer gave no answer; later failures fall back to its answer.

        """
        attributes: dict[str, AttributeValue] = {
            names.OPERATION: "chat",
            names.REQUEST_MODEL: asked.model,
            names.TENANT: asked.tenant,
        }
        name = f"moderated {asked.model}"
        with self._spans.request(name, asked.traceparent, attributes) as context:
            async with aclosing(self._stages(asked, context)) as events:
                async for event in events:
                    if event["stage"] == "result":
                        attributes[names.OUTCOME] = (
                            "fallback" if event["fallback"] else event["chosen"]
                        )
                    yield event

    async def _stages(
        self, asked: ModerationRequest, context: str
    ) -> AsyncGenerator[dict[str, Any]]:
        """The events of `run`, with a span of each stage under `context`."""
        rules = self._rules
        with self._stage("writer", asked.version, context) as own:
            written = await self._generate(
                asked, asked.version, asked.messages, rules.writer_s, own
            )
        yield {"stage": "writer", "text": written}
        result: dict[str, Any] = {
            "stage": "result",
            "id": uuid.uuid4().hex,
            "model": asked.version,
            "text": written,
            "chosen": "writer",
            "writer": {"text": written, "score": None, "version": asked.version},
            "critic": None,
            "margin": None,
            "reward_model": "",
            "fallback": "",
        }
        try:
            critic, rewritten = await self._rewrite(asked, written, context)
            yield {"stage": "critic", "text": rewritten}
            result["critic"] = {"text": rewritten, "score": None, "version": critic}
            rows = [
                {"messages": list(asked.messages), "completion": text}
                for text in (written, rewritten)
            ]
            with self._spans.stage("score", context, {names.REQUEST_MODEL: asked.model}):
                scores = await self._scorer.score(asked.model, rows, timeout_s=rules.score_s)
        except InferenceError as error:
            log.warning(
                "moderation.fallback",
                trace_id=parse_traceparent(context),
                version=asked.version,
                error=str(error),
            )
            result["fallback"] = f"{'scores' if result['critic'] else 'critic'}: {error}"
            self._metrics.moderated.labels("fallback").inc()
            yield result
            return
        yield choose(result, scores.reward_model, *scores.values)
        self._count(result)
        await self._keep(asked, result)

    def _stage(self, name: str, version: str, context: str) -> AbstractContextManager[str]:
        attributes: dict[str, AttributeValue] = {
            names.OPERATION: "chat",
            names.REQUEST_MODEL: version,
        }
        return self._spans.stage(name, context, attributes)

    async def _rewrite(
        self, asked: ModerationRequest, written: str, context: str
    ) -> tuple[str, str]:
        """Who rewrote, and what.

        Raises:
            InferenceError: the critic gave no answer in time, or is not ready.

        """
        rules, turns = self._rules, critique(asked.messages, written)
        if self._critic_client is not None:
            body = self._with_policy({"model": rules.critic, **_fields(asked, turns)})
            with self._stage("critic", rules.critic, context) as own:
                found = await self._critic_client.generate(
                    body, timeout_s=rules.critic_s, traceparent=own
                )
            return rules.critic, found.text
        critic = self._serving(rules.critic) if rules.critic else asked.version
        with self._stage("critic", critic, context) as own:
            return critic, await self._generate(asked, critic, turns, rules.critic_s, own)

    async def _generate(
        self,
        asked: ModerationRequest,
        version: str,
        messages: Sequence[Turn],
        timeout_s: float,
        traceparent: str,
    ) -> str:
        body = chat_body(version, self._settings(version), _fields(asked, messages))
        made = await self._client.generate(
            self._with_policy(body), timeout_s=timeout_s, traceparent=traceparent
        )
        return made.text

    def _with_policy(self, body: dict[str, Any]) -> dict[str, Any]:
        """The policy first: a version's settings may replace what the client's system turns say."""
        if not self._rules.policy:
            return body
        return {**body, "messages": put_before(self._rules.policy, body["messages"])}

    def _count(self, result: Mapping[str, Any]) -> None:
        self._metrics.moderated.labels(result["chosen"]).inc()
        for role in ("writer", "critic"):
            self._metrics.moderated_score.labels(role).observe(result[role]["score"])

    async def _keep(self, asked: ModerationRequest, result: Mapping[str, Any]) -> None:
        """Publish the pair, marked as synthetic; one that gets lost is only logged."""
        chosen, rejected = result[result["chosen"]], result[_other(result["chosen"])]
        better, worse = chosen["text"], rejected["text"]
        if not self._rules.pairs or not result["margin"] or better == worse:
            return
        created_at = self._clock.now()

        def build(redact: Redact) -> PreferencePair:
            return PreferencePair(
                pair_id=str(uuid.uuid5(NAMESPACE, result["id"])),
                tenant=asked.tenant,
                model=asked.model,
                messages=tuple(
                    Message(role=turn["role"], content=redact(turn["content"]))
                    for turn in asked.messages
                ),
                chosen=redact(better),
                rejected=redact(worse),
                chosen_version=chosen["version"],
                rejected_version=rejected["version"],
                source=PairSource.synthetic,
                causes=(f"moderated:{result['id']}",),
                askers=(asked.user_id,) if asked.user_id else (),
                context=Context(labels={"moderated": result["chosen"]}),
                created_at=created_at,
            )

        pair = await redacted(self._redact, build)
        try:
            await self._log.publish(
                PREFERENCES,
                key=pair.pair_id,
                event=pair,
                event_id=pair.pair_id,
                timeout_s=PUBLISH_TIMEOUT_S,
            )
        except LogUnavailable as error:
            log.warning(Unavailable.kafka, during="moderated_pair", error=str(error))


def critique(messages: Sequence[Turn], written: str) -> list[Turn]:
    """The conversation as the critic is asked about it."""
    return [
        *messages,
        {"role": "assistant", "content": written},
        {"role": "user", "content": CRITIC},
    ]


def _fields(asked: ModerationRequest, messages: Sequence[Turn]) -> dict[str, Any]:
    return {
        "messages": list(messages),
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
    }


def choose(
    result: dict[str, Any], reward_model: str, writer: float, critic: float
) -> dict[str, Any]:
    """The result with both scores and the better text; of two equal scores the writer's."""
    chosen: Literal["writer", "critic"] = "critic" if critic > writer else "writer"
    result["writer"]["score"], result["critic"]["score"] = writer, critic
    result |= {
        "chosen": chosen,
        "text": result[chosen]["text"],
        "margin": abs(critic - writer),
        "reward_model": reward_model,
    }
    return result


def _other(role: str) -> str:
    return "writer" if role == "critic" else "critic"
