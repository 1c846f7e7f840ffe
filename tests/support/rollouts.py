"""Routing states and registry records for tests that only need them to be there."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.contracts.events.base import WEIGHT_SCALE, Message
from shared.contracts.events.preferences import PairSource, PreferencePair
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    Lifecycle,
    ServedSettings,
    SettingsRecord,
    VersionRecord,
    VersionState,
    record_key,
    settings_key,
    state_key,
)
from shared.contracts.topics import PREFERENCES, ROLLOUTS, VERSIONS
from shared.kafka.log import EventLog
from shared.registry.routing import RoutingState, RoutingTable
from shared.registry.versions import Registry
from shared.testing.clock import START


def set_routing(
    table: RoutingTable,
    *,
    stable: str,
    candidate: str = "",
    model: str = "assistant",
    weight: int = WEIGHT_SCALE // 2,
) -> None:
    """Make `stable` (and a candidate) what the model is answered by."""
    kept = table.put(
        RoutingState(
            model=model,
            stable=stable,
            candidate=candidate,
            rollout="r1" if candidate else "",
            phase=Phase.progressing if candidate else Phase.healthy,
            weight=weight if candidate else 0,
            token=0,
            seq=0,
            at=START,
        )
    )
    assert kept


def version_record(version: str, *, model: str = "assistant", parent: str = "") -> VersionRecord:
    """What training would have written of a version."""
    return VersionRecord(
        version=version,
        model=model,
        method="dpo",
        base="base",
        parent=parent,
        adapter_uri="file://nowhere",
        adapter_sha256="0" * 64,
        fingerprint=Fingerprint(dtype="float32", texts=()),
        dataset=DatasetRef(dataset_id="d", uri="file://nowhere", sha256="0" * 64, rows=0),
        hyperparameters={},
        seed=0,
        code_revision="test",
        gate=GateResult(passed=True),
        job_id="job",
        created_at=START - timedelta(days=1),
    )


def settings_record(
    version: str,
    settings: ServedSettings = ServedSettings(),  # noqa: B008
    *,
    model: str = "assistant",
    base: str = "base",
    adapter_of: str = "",
) -> SettingsRecord:
    """What rollout would have written of a version of prompts and settings."""
    return SettingsRecord(
        version=version,
        model=model,
        base=base,
        adapter_of=adapter_of,
        settings=settings,
        gate=GateResult(passed=True),
        actor="test",
        created_at=START,
    )


def version_state(
    version: str, state: Lifecycle, *, model: str = "assistant", at: datetime = START
) -> VersionState:
    """Where rollout would have put a version at that time."""
    return VersionState(version=version, model=model, state=state, token=0, at=at)


def add_version(
    registry: Registry,
    version: str,
    state: Lifecycle,
    *,
    model: str = "assistant",
    at: datetime = START,
) -> None:
    """Register a trained version and put it into a state; `at` is when it came there."""
    registry.apply(record_key(version), version_record(version, model=model).to_json())
    stands = version_state(version, state, model=model, at=at)
    registry.apply(state_key(version), stands.to_json())


def add_settings(
    registry: Registry,
    version: str,
    settings: ServedSettings = ServedSettings(),  # noqa: B008
    *,
    model: str = "assistant",
    base: str = "base",
    adapter_of: str = "",
    base_sha256: str = "",
) -> None:
    """Register a version of prompts and settings."""
    record = settings_record(version, settings, model=model, base=base, adapter_of=adapter_of)
    record = record.model_copy(update={"base_sha256": base_sha256})
    registry.apply(settings_key(version), record.to_json())


async def register(log: EventLog, version: str, state: Lifecycle, *, model: str, day: int) -> None:
    """Publish a version as training and rollout do."""
    stands = version_state(version, state, model=model, at=START + timedelta(days=day))
    record = version_record(version, model=model)
    await log.publish(VERSIONS, key=record_key(version), event=record, event_id=f"{version}/r")
    await log.publish(VERSIONS, key=state_key(version), event=stands, event_id=f"{version}/s")


async def decide(log: EventLog, model: str, *, stable: str, candidate: str = "") -> None:
    """Publish who answers for a model, as rollout does."""
    elected = LeaderElected(holder="test", at=START)
    token = (await log.publish(ROLLOUTS, key="leader", event=elected, event_id=model)).offset
    decision = Decision(
        token=token,
        seq=0,
        kind=DecisionKind.start if candidate else DecisionKind.stable_set,
        model=model,
        rollout_id=f"{model}-rollout" if candidate else "",
        stable=stable,
        candidate=candidate,
        phase=Phase.progressing if candidate else Phase.healthy,
        actor="test",
        reason="a test",
        at=START,
    )
    await log.publish(ROLLOUTS, key=model, event=decision, event_id=f"{model}-decision")


async def publish_pairs(
    log: EventLog,
    model: str,
    *,
    count: int,
    at: datetime,
    prefix: str = "p",
    rejected: str = "other",
) -> None:
    """Publish pairs of votes in which v2 won over v1, as the aggregator does."""
    for number in range(count):
        pair = PreferencePair(
            pair_id=f"{prefix}{number}",
            tenant="default",
            model=model,
            messages=(Message(role="user", content="why?"),),
            chosen="a long answer",
            rejected=rejected,
            chosen_version="v2",
            rejected_version="v1",
            source=PairSource.vote,
            causes=(f"f{number}:0",),
            created_at=at,
        )
        await log.publish(PREFERENCES, key=pair.pair_id, event=pair, event_id=pair.pair_id)
