"""Events and rows for training's tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.training.dataset_rows import Pair
from shared.contracts.events.base import Context, Message
from shared.contracts.events.preferences import (
    PairSource,
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    Lifecycle,
    RewardRecord,
    VersionRecord,
    VersionState,
    record_key,
    state_key,
)
from shared.registry.versions import Registry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "assistant"


def turns(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def pair(number: int, **fields: Any) -> Pair:
    given = {
        "pair_id": f"pair-{number:04}",
        "messages": turns(f"question {number}"),
        "chosen": f"a good answer {number}",
        "rejected": f"a bad answer {number}",
        **fields,
    }
    return Pair(**given)


def pair_event(number: int, **fields: Any) -> PreferencePair:
    given = {
        "pair_id": f"pair-{number:04}",
        "tenant": "default",
        "model": MODEL,
        "messages": turns(f"question {number}"),
        "chosen": f"a good answer {number}",
        "rejected": f"a bad answer {number}",
        "source": PairSource.vote,
        "causes": (f"f{number}:0",),
        "raters": (f"rater-{number}",),
        "context": Context(category="factual_qa"),
        "created_at": NOW,
        **fields,
    }
    return PreferencePair(**given)


def example_event(number: int) -> UnpairedExample:
    return UnpairedExample(
        pair_id=f"example-{number:04}",
        tenant="default",
        model=MODEL,
        messages=turns(f"thumbed question {number}"),
        completion="an answer",
        label=True,
        causes=(f"t{number}:0",),
        created_at=NOW,
    )


def retraction(pair_id: str) -> PreferenceRetracted:
    return PreferenceRetracted(
        pair_id=pair_id, tenant="default", reason="withdrawn", created_at=NOW
    )


def request(job_id: str = "job", **fields: Any) -> TrainingRequested:
    given = {
        "job_id": job_id,
        "model": MODEL,
        "method": TrainingMethod.dpo,
        "actor": "tester",
        "requested_at": NOW,
        **fields,
    }
    return TrainingRequested(**given)


def record(version: str, **fields: Any) -> VersionRecord:
    given = {
        "version": version,
        "model": MODEL,
        "method": "sft",
        "base": "base",
        "adapter_uri": f"memory://adapters/{version}",
        "adapter_sha256": "0" * 64,
        "fingerprint": Fingerprint(dtype="float32", texts=()),
        "dataset": DatasetRef(dataset_id="d", uri="d", sha256="0", rows=1),
        "hyperparameters": {},
        "seed": 0,
        "code_revision": "cafe",
        "gate": GateResult(passed=True),
        "job_id": f"job of {version}",
        "created_at": NOW,
        **fields,
    }
    return VersionRecord(**given)


def reward_record(name: str = f"{MODEL}-reward-v1", **fields: Any) -> RewardRecord:
    given = {
        "name": name,
        "model": MODEL,
        "base": "base",
        "adapter_uri": "memory://reward",
        "adapter_sha256": "0" * 64,
        "dataset": DatasetRef(dataset_id="d", uri="d", sha256="0", rows=1),
        "hyperparameters": {},
        "seed": 0,
        "code_revision": "cafe",
        "metrics": {},
        "job_id": f"job of {name}",
        "created_at": NOW,
        **fields,
    }
    return RewardRecord(**given)


def state(version: str, lifecycle: Lifecycle) -> VersionState:
    return VersionState(version=version, model=MODEL, state=lifecycle, token=0, at=NOW)


def registry(**lifecycles: Lifecycle) -> Registry:
    """A registry of `<model>-<name>` versions; `v1_0=Lifecycle.stable` is `assistant-v1.0`."""
    made = Registry()
    for name, lifecycle in lifecycles.items():
        version = f"{MODEL}-{name.replace('_', '.')}"
        made.apply(record_key(version), record(version).to_json())
        made.apply(state_key(version), state(version, lifecycle).to_json())
    return made
