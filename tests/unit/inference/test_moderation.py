"""Moderated generation: the better answer with both scores, a fallback for each stage, pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.inference.engine import EngineClient, Generated
from services.inference.errors import (
    EngineUnavailable,
    InferenceError,
    ScorerUnavailable,
    UnknownAdapter,
)
from services.inference.generation_spans import GenerationSpans
from services.inference.metrics import InferenceMetrics
from services.inference.moderation import ModerationRequest, ModerationRules, Moderator
from services.inference.scorer import Scorer, Scores
from shared.clock import SystemClock
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.events.versions import RequestDefaults, ServedSettings, SettingsRecord
from shared.contracts.topics import PREFERENCES
from shared.observability.spans import OFF, Spans
from shared.redaction.detection import Redact, Redaction
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.analyzer import analyzer_twin, detector_at
from tests.support.rollouts import settings_record
from tests.support.spans import CollectedSpans, context_of

ASKED = ModerationRequest(
    tenant="default",
    model="m",
    version="m-v1",
    messages=({"role": "user", "content": "Where is my parcel?"},),
    max_tokens=8,
    temperature=0.0,
)
RULES = ModerationRules(policy="Be kind.", critic="", writer_s=1, critic_s=2, score_s=3, pairs=True)


class EngineOfAnswers:
    """Gives its answers in turn; an error is raised."""

    def __init__(self, *answers: str | InferenceError) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[list[Mapping[str, str]], float]] = []
        self.bodies: list[Mapping[str, Any]] = []
        self.traceparents: list[str] = []

    async def generate(
        self, body: Mapping[str, Any], *, timeout_s: float, traceparent: str = ""
    ) -> Generated:
        self.bodies.append(body)
        self.traceparents.append(traceparent)
        self.asked.append((body["messages"], timeout_s))
        answer = self.answers.pop(0)
        if isinstance(answer, InferenceError):
            raise answer
        return Generated(answer, "stop", 1)


class ScriptedScorer:
    """Gives these scores, or raises."""

    def __init__(self, *values: float, error: InferenceError | None = None) -> None:
        self.values, self.error = values, error

    async def score(self, model: str, rows: Sequence[Any], *, timeout_s: float) -> Scores:
        if self.error:
            raise self.error
        return Scores("m-reward-v1", self.values)


class Stages:
    """A moderator with everything around it."""

    def __init__(
        self,
        engine: EngineOfAnswers,
        scorer: ScriptedScorer,
        rules: ModerationRules = RULES,
        settings: SettingsRecord | None = None,
        critic: EngineOfAnswers | None = None,
        ready: Mapping[str, str] | None = None,
        redact: Redact = lambda text: text.replace("parcel", "[redacted]"),
        spans: Spans = OFF,
    ) -> None:
        self.log = MemoryLog()
        self.metrics = InferenceMetrics(CollectorRegistry())

        def serving(name: str) -> str:
            if name not in (ready or {}):
                raise UnknownAdapter(f"model: {name} has no version that is ready here")
            return (ready or {})[name]

        self.moderator = Moderator(
            client=cast("EngineClient", engine),
            critic_client=cast("EngineClient", critic) if critic else None,
            serving=serving,
            scorer=cast("Scorer", scorer),
            settings=lambda _: settings,
            event_log=self.log,
            rules=rules,
            redact=redact,
            clock=ManualClock(),
            metrics=self.metrics,
            spans=GenerationSpans(spans, SystemClock()),
        )

    async def run(self, asked: ModerationRequest = ASKED) -> list[dict[str, Any]]:
        return [event async for event in self.moderator.run(asked)]

    def chosen(self, name: str) -> float:
        return self.metrics.moderated.labels(name)._value.get()

    def pairs(self) -> list[PreferencePair]:
        return [
            PreferencePair.model_validate_json(one.value or b"")
            for one in self.log.all(PREFERENCES)
        ]


async def test_the_better_answer_is_returned_with_both_scores_and_progress() -> None:
    engine = EngineOfAnswers("It is late.", "It comes tomorrow.")
    stages = Stages(engine, ScriptedScorer(0.5, 1.5))
    events = await stages.run()
    assert [event["stage"] for event in events] == ["writer", "critic", "result"]
    result = events[-1]
    assert (result["chosen"], result["text"]) == ("critic", "It comes tomorrow.")
    assert result["writer"] == {"text": "It is late.", "score": 0.5, "version": "m-v1"}
    assert (result["critic"]["score"], result["margin"]) == (1.5, 1.0)
    assert result["reward_model"] == "m-reward-v1"
    assert stages.chosen("critic") == 1


async def test_the_policy_is_the_system_prompt_of_both_and_each_has_its_deadline() -> None:
    engine = EngineOfAnswers("a", "b")
    await Stages(engine, ScriptedScorer(1.0, 0.0)).run()
    (writer, writer_s), (critic, critic_s) = engine.asked
    assert writer[0] == critic[0] == {"role": "system", "content": "Be kind."}
    assert critic[-2] == {"role": "assistant", "content": "a"}
    assert (writer_s, critic_s) == (1, 2)


async def test_a_version_of_settings_is_asked_as_it_is_served_with_the_policy_first() -> None:
    engine = EngineOfAnswers("a", "b")
    served = ServedSettings(system="Be brief.", defaults=RequestDefaults(top_p=0.5))
    settings = settings_record("m-v1", served, model="m", base="the-base")
    await Stages(engine, ScriptedScorer(1.0, 0.0), settings=settings).run()
    for body in engine.bodies:
        assert (body["model"], body["top_p"]) == ("the-base", 0.5)
        systems = [turn["content"] for turn in body["messages"] if turn["role"] == "system"]
        assert systems == ["Be kind.\n\nBe brief."]


async def test_another_version_is_the_critic_and_the_pair_says_who_wrote_what() -> None:
    engine, rules = EngineOfAnswers("a", "b"), replace(RULES, critic="reviewer")
    stages = Stages(engine, ScriptedScorer(0.0, 1.0), rules, ready={"reviewer": "reviewer-v2"})
    result = (await stages.run())[-1]
    assert [body["model"] for body in engine.bodies] == ["m-v1", "reviewer-v2"]
    assert (result["writer"]["version"], result["critic"]["version"]) == ("m-v1", "reviewer-v2")
    (pair,) = stages.pairs()
    assert (pair.chosen_version, pair.rejected_version) == ("reviewer-v2", "m-v1")


async def test_a_critic_that_is_not_ready_leaves_the_writer_s_answer() -> None:
    stages = Stages(EngineOfAnswers("a"), ScriptedScorer(), replace(RULES, critic="reviewer"))
    result = (await stages.run())[-1]
    assert (result["text"], result["chosen"]) == ("a", "writer")
    assert result["fallback"].startswith("critic: model: reviewer has no version")


async def test_a_critic_at_an_endpoint_of_its_own_has_policy_deadline_and_fallback() -> None:
    rules = replace(RULES, critic="big-model")
    engine = EngineOfAnswers("a", "a")
    critic = EngineOfAnswers("b", EngineUnavailable("no answer within 2 s"))
    settings = settings_record("m-v1", ServedSettings(system="Be brief."), model="m", base="base")
    stages = Stages(engine, ScriptedScorer(0.0, 1.0), rules, settings, critic)
    result = (await stages.run())[-1]
    assert (result["text"], result["critic"]["version"]) == ("b", "big-model")
    messages, deadline_s = critic.asked[0]
    assert (critic.bodies[0]["model"], deadline_s) == ("big-model", 2)
    assert messages[0] == {"role": "system", "content": "Be kind."}
    assert (await stages.run())[-1]["fallback"] == "critic: no answer within 2 s"


async def test_of_two_equal_scores_the_writer_s_stays() -> None:
    stages = Stages(EngineOfAnswers("a", "b"), ScriptedScorer(1.0, 1.0))
    assert (await stages.run())[-1]["chosen"] == "writer"
    assert stages.pairs() == [], "nothing was better"


@pytest.mark.parametrize(
    ("engine", "scorer", "why"),
    [
        (
            EngineOfAnswers("a", EngineUnavailable("no answer within 2 s")),
            ScriptedScorer(),
            "critic: no answer within 2 s",
        ),
        (
            EngineOfAnswers("a", "b"),
            ScriptedScorer(error=ScorerUnavailable("no scores within 3 s")),
            "scores: no scores within 3 s",
        ),
    ],
)
async def test_a_stage_that_fails_leaves_the_writer_s_answer(
    engine: EngineOfAnswers, scorer: ScriptedScorer, why: str
) -> None:
    stages = Stages(engine, scorer)
    result = (await stages.run())[-1]
    assert (result["text"], result["chosen"], result["fallback"]) == ("a", "writer", why)
    assert (stages.chosen("fallback"), stages.pairs()) == (1, [])


async def test_without_the_writer_there_is_no_answer() -> None:
    stages = Stages(EngineOfAnswers(EngineUnavailable("away")), ScriptedScorer())
    with pytest.raises(EngineUnavailable):
        await stages.run()


async def test_a_pair_is_marked_as_synthetic_and_redacted_and_can_be_turned_off() -> None:
    stages = Stages(EngineOfAnswers("the parcel", "your order"), ScriptedScorer(2.0, 1.0))
    await stages.run()
    (pair,) = stages.pairs()
    assert (pair.source, pair.chosen, pair.rejected) == (
        PairSource.synthetic,
        "the [redacted]",
        "your order",
    )
    assert pair.messages[0].content == "Where is my [redacted]?"
    assert (pair.raters, pair.context.labels) == ((), {"moderated": "writer"})
    silent = Stages(
        EngineOfAnswers("a", "b"), ScriptedScorer(2.0, 1.0), replace(RULES, pairs=False)
    )
    await silent.run()
    assert silent.pairs() == []


async def test_the_pair_names_who_asked_so_that_an_erasure_finds_it() -> None:
    stages = Stages(EngineOfAnswers("a", "b"), ScriptedScorer(0.0, 1.0))
    await stages.run(replace(ASKED, user_id="ann"))
    (pair,) = stages.pairs()
    assert pair.askers == ("ann",)


@pytest.mark.parametrize("away", [False, True])
async def test_a_pair_has_what_a_detector_left_and_the_client_the_whole_answer(away: bool) -> None:
    asked = replace(ASKED, messages=({"role": "user", "content": "Where is Anna Miller?"},))
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        twin.status = 503 if away else 200
        stages = Stages(
            EngineOfAnswers("In Lisbon.", "Ask Miller."),
            ScriptedScorer(2.0, 1.0),
            redact=Redaction(detector),
        )
        result = (await stages.run(asked))[-1]
        (pair,) = stages.pairs()
    assert "In Lisbon." in str(result)
    kept = (pair.messages[0].content, pair.chosen, pair.rejected)
    if away:
        assert kept == ("[UNCHECKED]",) * 3
        assert pair.reasons == ("unchecked",)
    else:
        assert kept == ("Where is [NAME]?", "In [LOCATION].", "Ask [NAME].")
        assert pair.reasons == ()


CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_each_stage_has_a_span_in_the_clients_trace_and_the_engine_goes_on_under_it() -> None:
    collected = CollectedSpans(0.0)  # What is sampled is so by the client's flag alone.
    engine, critic = EngineOfAnswers("It is late."), EngineOfAnswers("It comes tomorrow.")
    scorer = ScriptedScorer(0.5, 1.5)
    stages = Stages(engine, scorer, critic=critic, spans=collected.spans)
    await stages.run(replace(ASKED, traceparent=CLIENT))
    spans = {span.name: span for span in collected.finished()}
    assert set(spans) == {"writer", "critic", "score", f"moderated {ASKED.model}"}
    whole = spans.pop(f"moderated {ASKED.model}")
    assert context_of(whole.parent) == CLIENT
    assert whole.attributes["ratchet.outcome"] == "critic"
    assert {context_of(span.parent) for span in spans.values()} == {context_of(whole)}
    assert engine.traceparents == [context_of(spans["writer"])]
    assert critic.traceparents == [context_of(spans["critic"])]
    assert "late" not in str([span.to_json() for span in collected.finished()])


async def test_a_stage_that_fails_says_so_and_the_whole_says_what_was_returned() -> None:
    collected = CollectedSpans()
    engine = EngineOfAnswers("It is late.", EngineUnavailable("no answer; try again"))
    with capture_logs() as logs:
        await Stages(engine, ScriptedScorer(), spans=collected.spans).run()
    spans = {span.name: span for span in collected.finished()}
    assert spans["critic"].status.description == "EngineUnavailable"
    whole = spans[f"moderated {ASKED.model}"]
    assert (whole.parent, whole.status.description) == (None, None)
    assert whole.attributes["ratchet.outcome"] == "fallback"
    assert [line["trace_id"] for line in logs] == [f"{whole.context.trace_id:032x}"]


async def test_a_client_that_leaves_ends_the_spans() -> None:
    collected = CollectedSpans()
    events = Stages(EngineOfAnswers("a"), ScriptedScorer(), spans=collected.spans).moderator.run(
        ASKED
    )
    await anext(events)
    await events.aclose()
    writer, whole = collected.finished()
    assert (writer.name, whole.status.description) == ("writer", "GeneratorExit")


async def test_without_an_export_the_engine_is_told_what_the_client_said() -> None:
    engine = EngineOfAnswers("a", "b")
    await Stages(engine, ScriptedScorer(0.5, 1.5)).run(replace(ASKED, traceparent=CLIENT))
    assert {one[:36] + one[52:] for one in engine.traceparents} == {CLIENT[:36] + CLIENT[52:]}
