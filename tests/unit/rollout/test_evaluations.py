"""Evaluation of settings versions through the control API, and the gate that asks for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from services.rollout import evaluations, recorded_prompts
from services.rollout.evaluations import MAX_TOKENS
from services.rollout.strategy_files import parse
from shared.contracts.events.base import EncryptedTexts
from shared.contracts.events.erasures import ErasureRequested
from shared.contracts.events.generations import GenerationFinished, GenerationRequested
from shared.contracts.events.interactions import InteractionRecorded, Outcome, Purpose
from shared.contracts.events.versions import GateResult, SettingsEvaluation, evaluation_key
from shared.contracts.subject import subject_of
from shared.contracts.topics import (
    ERASURES,
    GENERATION_REQUESTS,
    GENERATION_RESULTS,
    INTERACTIONS,
    VERSIONS,
)
from shared.kafka.envelope import decode, models_by_type
from shared.keys import KeyRing
from tests.support.aggregator import interaction
from tests.support.waiting import eventually
from tests.unit.rollout.conftest import client
from tests.unit.rollout.fakes import STRATEGY, ControllerBench, ControllerHarness, register

POLITE: dict[str, Any] = {
    "version": "polite",
    "model": "m",
    "settings": {"system": "Be polite."},
    "reason": "answers are rude",
}
WHY = {"reason": "before its first user", "on_behalf_of": "ann"}
REQUIRED = {**STRATEGY.to_dict(), "evaluation": "required"}
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture
async def worker(harness: ControllerHarness) -> AsyncIterator[dict[str, str]]:
    """A batch worker that answers by version with the texts that a test sets.

    Each answer comes after one that nobody asked for, in the same batch.
    """
    texts = {"v1": "It arrives tomorrow.", "polite": "It will arrive tomorrow."}

    async def answer() -> None:
        async for record in harness.log.tail(GENERATION_REQUESTS):
            asked = decode(record.headers, record.value, models_by_type(GenerationRequested))
            assert isinstance(asked, GenerationRequested)
            result = GenerationFinished(
                request_id=asked.request_id,
                batch_id=asked.batch_id,
                purpose=asked.purpose,
                version=asked.version,
                outcome="ok",
                completion=texts[asked.version],
                finish_reason="stop",
                finished_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
            stray = result.model_copy(update={"request_id": f"{asked.request_id}/stray"})
            for one in (stray, result):
                await harness.log.publish(
                    GENERATION_RESULTS, key=one.request_id, event=one, event_id=one.request_id
                )

    answering = asyncio.create_task(answer())
    yield texts
    answering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await answering


async def recorded(harness: ControllerHarness, *events: InteractionRecorded) -> None:
    for event in events:
        await harness.log.publish(
            INTERACTIONS, key=event.trace_id, event=event, event_id=event.trace_id
        )


def prompts(count: int, **more: Any) -> list[InteractionRecorded]:
    return [
        interaction(f"t{number}", prompt=f"Where is parcel {number}?", model="m", **more)
        for number in range(count)
    ]


async def evaluation(http: httpx.AsyncClient) -> dict[str, Any]:
    begun = await http.post("/v1/versions/polite/evaluation", json={**WHY, "prompts": 12})
    assert begun.status_code == 202, begun.text

    async def found() -> dict[str, Any]:
        return (await http.get("/v1/versions/polite")).json()["evaluation"]

    return await eventually(found, "the evaluation is on record")


async def test_settings_answer_recorded_prompts_beside_stable_and_it_is_on_record(
    harness: ControllerHarness, http: httpx.AsyncClient, worker: dict[str, str]
) -> None:
    await http.post("/v1/versions", json=POLITE)
    harness.scorer.name = "reward-1"
    unsuited = [
        interaction("other", prompt="another model's"),
        interaction("probe", prompt="no user's", model="m", purpose=Purpose.evaluation),
        interaction("lost", prompt="failed", model="m", outcome=Outcome.timeout),
    ]
    await recorded(harness, *prompts(20), *prompts(20), *unsuited)
    shown = await evaluation(http)
    assert (shown["against"], shown["prompts"], shown["pairs"]) == ("v1", 12, 12)
    assert (shown["reward_model"], shown["on_behalf_of"]) == ("reward-1", "ann")
    checks = {one["name"]: one["passed"] for one in shown["gate"]["checks"]}
    assert set(checks) == {"answered", "failures", "refusals", "cuts", "length", "reward"}
    # The reward model of this test likes short answers, and each of these is longer.
    assert [name for name, passed in checks.items() if not passed] == ["reward"]
    listed = (await http.get("/v1/versions", params={"model": "m"})).json()["versions"]
    assert {one["version"]: one["evaluated"] for one in listed} == {
        "v1": None,
        "v2": None,
        "polite": False,
    }
    (record,) = (one for one in harness.log.all(VERSIONS) if one.key == evaluation_key("polite"))
    kept = SettingsEvaluation.model_validate_json(record.value or b"")
    assert kept.actor
    asked = [
        GenerationRequested.model_validate_json(one.value or b"")
        for one in harness.log.all(GENERATION_REQUESTS)
    ]
    assert len(asked) == 24
    assert {one.sampling["max_tokens"] for one in asked if one.sampling} == {MAX_TOKENS}
    both = {name: {one.messages for one in asked if one.version == name} for name in worker}
    assert both["v1"] == both["polite"]
    assert len(both["v1"]) == 12


async def test_a_strategy_may_require_that_it_passed_and_an_override_is_on_record(
    harness: ControllerHarness, http: httpx.AsyncClient, worker: dict[str, str]
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(20))
    start = {"model": "m", "candidate": "polite", "strategy": REQUIRED}
    refused = await http.post("/v1/rollouts", json=start)
    assert (refused.status_code, refused.json()["code"]) == (422, "not_allowed")
    assert "it was not evaluated" in refused.json()["detail"]
    worker["polite"] = REFUSAL
    assert not (await evaluation(http))["gate"]["passed"]
    refused = await http.post("/v1/rollouts", json=start)
    assert "refusals: 12 answers refuse, of stable's 0" in refused.json()["detail"]
    overriding = {**start, "unevaluated": True}
    assert (await http.post("/v1/rollouts", json=overriding)).status_code == 422
    begun = await http.post("/v1/rollouts", json={**overriding, "reason": "it has to refuse"})
    assert begun.status_code == 201, begun.text
    (decision,) = (one for one in harness.written if one.kind.value == "start")
    assert decision.evidence["unevaluated"] == "refusals: 12 answers refuse, of stable's 0"
    assert decision.reason == "it has to refuse"


async def test_a_passed_evaluation_lets_it_start(
    harness: ControllerHarness, http: httpx.AsyncClient, worker: dict[str, str]
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(20))
    assert (await evaluation(http))["gate"]["passed"]
    start = {"model": "m", "candidate": "polite", "strategy": REQUIRED}
    assert (await http.post("/v1/rollouts", json=start)).status_code == 201


async def test_an_evaluation_against_an_earlier_stable_version_does_not_count(
    harness: ControllerHarness, http: httpx.AsyncClient, worker: dict[str, str]
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(20))
    assert (await evaluation(http))["gate"]["passed"]
    begun = await http.post("/v1/rollouts", json={"model": "m", "candidate": "v2"})
    path = f"/v1/rollouts/{begun.json()['rollout_id']}/promote"
    full = {"full": True, "reason": "v2 is known to be better"}
    await harness.round()
    promoted = await http.post(path, json=full)
    assert promoted.status_code == 200, promoted.text
    start = {"model": "m", "candidate": "polite", "strategy": REQUIRED}
    refused = await http.post("/v1/rollouts", json=start)
    assert refused.status_code == 422
    assert "it was evaluated against v1, and v2 is stable now" in refused.json()["detail"]


async def test_trained_versions_have_a_gate_of_their_own(http: httpx.AsyncClient) -> None:
    start = {"model": "m", "candidate": "v2", "strategy": REQUIRED}
    assert (await http.post("/v1/rollouts", json=start)).status_code == 201


@pytest.mark.parametrize(
    ("version", "recorded_prompts", "status", "reason"),
    [
        ("v2", 20, 422, "its own gate evaluated it"),
        ("nobody", 20, 404, "unknown"),
        ("polite", 9, 409, "9 recorded prompts"),
    ],
)
async def test_what_cannot_be_evaluated_is_told_why(
    harness: ControllerHarness,
    http: httpx.AsyncClient,
    version: str,
    recorded_prompts: int,
    status: int,
    reason: str,
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(recorded_prompts))
    refused = await http.post(f"/v1/versions/{version}/evaluation", json=WHY)
    assert (refused.status_code, reason in refused.json()["detail"]) == (status, True)


async def test_a_prompt_whose_key_is_destroyed_is_not_asked_again(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/versions", json=POLITE)
    closed = EncryptedTexts(keys=("k1",), data="AAAA")
    theirs = prompts(10)
    theirs[0] = theirs[0].model_copy(update={"encrypted": closed})
    await recorded(harness, *theirs)
    refused = await http.post("/v1/versions/polite/evaluation", json=WHY)
    assert (refused.status_code, "9 recorded prompts" in refused.json()["detail"]) == (409, True)


async def test_a_second_evaluation_waits_for_the_first(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(20))
    assert (await http.post("/v1/versions/polite/evaluation", json=WHY)).status_code == 202
    again = await http.post("/v1/versions/polite/evaluation", json=WHY)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    shown = (await http.get("/v1/versions/polite")).json()
    assert shown["evaluating"]["prompts"] == 20
    assert shown["evaluation"] is None


async def test_a_person_who_was_erased_is_asked_nothing_again(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(20, user_id="eve"), *prompts(30, user_id="ana")[20:])
    person = {"tenant": "acme", "subjects": (subject_of("acme", "eve"),)}
    asked = ErasureRequested(
        erasure_id="e1", actor="key", requested_at=datetime(2030, 1, 1, tzinfo=UTC), **person
    )
    await harness.log.publish(ERASURES, key="e1", event=asked, event_id="e1")
    begun = await http.post("/v1/versions/polite/evaluation", json=WHY)
    assert (begun.status_code, begun.json()["prompts"]) == (202, 10)


async def test_prompts_are_held_up_to_a_bound_of_their_bytes(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await http.post("/v1/versions", json=POLITE)
    theirs = [one.model_copy(update={"model": "other"}) for one in prompts(20)]
    await recorded(harness, *theirs, *prompts(20))
    size = max(len(one.to_json()) for one in prompts(20))
    monkeypatch.setattr(recorded_prompts, "MAX_BYTES", 15 * size)
    begun = await http.post("/v1/versions/polite/evaluation", json=WHY)
    assert begun.status_code == 202, begun.text
    assert 15 <= begun.json()["prompts"] < 18


async def test_of_two_evaluations_asked_for_at_once_one_begins(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/versions", json=POLITE)
    await recorded(harness, *prompts(20))
    both = await asyncio.gather(
        *(http.post("/v1/versions/polite/evaluation", json=WHY) for _ in range(2))
    )
    assert sorted(one.status_code for one in both) == [202, 409]


async def test_prompts_are_read_for_one_evaluation_at_a_time(
    harness: ControllerHarness, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("polite", "brief", "warm")
    for name in names:
        await http.post("/v1/versions", json={**POLITE, "version": name})
    reading, most = 0, 0

    async def read(*_: object) -> list[InteractionRecorded]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0)
        reading -= 1
        return prompts(20)

    monkeypatch.setattr(evaluations, "recorded_prompts", read)
    begun = await asyncio.gather(
        *(http.post(f"/v1/versions/{name}/evaluation", json=WHY) for name in names)
    )
    assert {one.status_code for one in begun} == {202}
    assert most == 1


async def test_what_starts_by_itself_waits_for_a_required_evaluation(
    bench: ControllerBench,
) -> None:
    await register(bench.log, "v1")
    harness = await bench.harness(auto_start=True, strategy=parse(REQUIRED))
    await harness.round()
    async with client(harness, KeyRing(required=False)) as http:
        await http.post("/v1/versions", json=POLITE)
    await harness.round()
    assert harness.decision_log.unfinished_of("m") is None
    passed = SettingsEvaluation(
        version="polite",
        model="m",
        against="v1",
        prompts=20,
        pairs=20,
        gate=GateResult(passed=True),
        actor="key",
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    key = evaluation_key("polite")
    await harness.log.publish(VERSIONS, key=key, event=passed, event_id=key)
    registry = harness.versions.registry
    await eventually(lambda: (known := registry.get("polite")) and known.evaluation, "it is known")
    await harness.round()
    begun = harness.decision_log.unfinished_of("m")
    assert begun is not None
    assert begun.state.candidate == "polite"
