"""One trace leads from a client's request to the decision about the version it helped to make."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from services.aggregator.codec import write_of
from services.aggregator.fold import Output
from services.aggregator.join_spans import JoinSpans
from services.feedback.feedback_spans import FeedbackSpans
from services.rollout.decision_spans import DecisionSpans
from services.router.call import Call, EngineAttempt
from services.router.fields import FieldRules
from services.router.identity import IdentityRules
from services.router.request import read_request
from services.router.state import RouteChoice
from services.router.traces import RequestSpans, TraceIds
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.interactions import Outcome
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.contracts.topics import FEEDBACK, INTERACTIONS, PREFERENCES
from shared.observability.spans import Spans
from shared.registry.versions import Registry
from shared.testing.clock import ManualClock
from tests.support.aggregator import feedback, interaction, source_record
from tests.support.spans import CollectedSpans, reached
from tests.unit.training.builders import pair_event, request
from tests.unit.training.harness import stocked

NOW = datetime(2026, 11, 25, tzinfo=UTC)
CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def routed(spans: Spans, given: str) -> Call:
    """A request that stable answered after the candidate failed, with its spans exported."""
    body = b'{"model":"assistant","messages":[{"role":"user","content":"a secret question"}]}'
    asked = read_request("chat", body, {}, FieldRules(), IdentityRules())
    traces = TraceIds(spans)
    asked.trace_id = traces.take()
    call = Call(
        request=asked,
        choice=RouteChoice("assistant", "assistant-v1.1", "candidate", "r1", "assistant-v1.0"),
        tenant="acme",
        started=0.0,
        started_at=NOW,
        traceparent=traces.traceparent(asked.trace_id, given.encode()),
        given_traceparent=given.encode(),
    )
    call.attempts = [
        EngineAttempt("assistant-v1.1", "candidate", 0.0, outcome=Outcome.crash, duration_s=0.1),
        EngineAttempt("assistant-v1.0", "fallback", 0.1, duration_s=0.2),
    ]
    RequestSpans(spans).record(call)
    return call


def test_the_clients_trace_goes_on_to_the_join() -> None:
    collected = CollectedSpans(0.0)  # What is sampled is so by the client's flag alone.
    call = routed(collected.spans, CLIENT)
    trace_id = call.request.trace_id

    said = FeedbackSubmitted(
        feedback_id="f",
        trace_id=trace_id,
        tenant="acme",
        type=FeedbackType.thumbs_up,
        submitted_at=NOW,
    )
    posts = FeedbackSpans(collected.spans, ManualClock(NOW))
    posted = posts.context(CLIENT, trace_id)
    posts.stored("POST /v1/feedback", posted, CLIENT, said)
    told = [
        source_record(
            INTERACTIONS, 0, 1, interaction(), key=trace_id, traceparent=call.traceparent
        ),
        source_record(FEEDBACK, 0, 1, feedback(), key=trace_id, traceparent=posted),
        source_record(FEEDBACK, 0, 2, feedback(), key="made-by-the-client", traceparent=CLIENT),
    ]
    JoinSpans(collected.spans).joined(told, now_ns=10)
    spans = {span.name: span for span in collected.finished()}
    assert (
        reached(CLIENT[3:35], spans.values())
        == set(spans)
        == {
            "chat assistant",
            "chat assistant-v1.1",
            "chat assistant-v1.0",
            "POST /v1/feedback",
            f"process {INTERACTIONS}",
            f"process {FEEDBACK}",
        }
    )
    own = spans["chat assistant"]
    assert f"{own.parent.span_id:016x}" == CLIENT[36:52]
    for number, version in enumerate(("assistant-v1.1", "assistant-v1.0")):
        attempt = spans[f"chat {version}"]
        assert attempt.parent.span_id == own.context.span_id
        assert f"{attempt.context.span_id:016x}" == call.attempt_span(number)[36:52]
    assert call.attempt_traceparent(0) == call.traceparent
    assert call.attempt_traceparent(1) == call.attempt_span(1)
    asked, joined = spans[f"process {INTERACTIONS}"], spans[f"process {FEEDBACK}"]
    assert f"{asked.context.trace_id:032x}" == trace_id
    assert joined.parent.span_id == asked.context.span_id
    post = spans["POST /v1/feedback"]
    assert f"{post.parent.span_id:016x}" == CLIENT[36:52]
    assert [link.context.span_id for link in post.links] == [asked.context.span_id]
    assert [link.context.span_id for link in joined.links] == [post.context.span_id]


async def test_from_the_answer_to_the_decision(tmp_path: Path) -> None:
    collected = CollectedSpans()
    spans = collected.spans
    call = routed(spans, "")
    join = JoinSpans(spans)
    served = source_record(
        INTERACTIONS,
        0,
        1,
        interaction(),
        key=call.request.trace_id,
        traceparent=call.traceparent,
    )
    join.joined([served], now_ns=10)
    harness = await stocked(tmp_path)
    pair = pair_event(900).model_copy(update={"traces": (call.request.trace_id,)})
    output = Output(PREFERENCES, pair.pair_id, pair, pair.pair_id, NOW)
    written = write_of(output, sampled=join.sampled(output))
    join.written([output], now_ns=20)
    await harness.log.append(
        PREFERENCES, key=pair.pair_id, value=written.value, headers=written.headers
    )
    assert (await harness.run(request(), spans=spans)).version
    registry = Registry()
    made = harness.records()[-1]
    registry.apply(f"{made.version}/record", made.to_json())
    decision = Decision(
        token=1,
        seq=0,
        kind=DecisionKind.start,
        model=made.model,
        rollout_id="r1",
        stable="assistant-v1.0",
        candidate=made.version,
        phase=Phase.progressing,
        weight=500,
        actor="controller",
        reason="starts",
        at=NOW,
    )
    DecisionSpans(spans, registry).announce(decision)
    DecisionSpans(spans, registry).announce(
        decision.model_copy(update={"kind": DecisionKind.hold, "seq": 1})
    )
    assert reached(call.request.trace_id, collected.finished()) == {
        "chat assistant",
        "chat assistant-v1.1",
        "chat assistant-v1.0",
        f"process {INTERACTIONS}",
        f"publish {PREFERENCES}",
        "dataset",
        "train dpo",
        "decide start",
    }
    assert "a secret question" not in str([span.to_json() for span in collected.finished()])
