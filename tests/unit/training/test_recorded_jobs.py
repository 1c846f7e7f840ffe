"""A chain made again on another base, by its records, while the old base is served."""

from __future__ import annotations

import json

from services.training.dataset_store import DatasetStore
from shared.contracts.events.training import RunPhase, TrainingMethod
from shared.contracts.events.versions import Lifecycle, VersionRecord, record_key
from shared.contracts.topics import VERSIONS
from tests.unit.training.builders import MODEL, record, registry, request
from tests.unit.training.harness import V10, TrainingHarness

V11, V20, V21 = (f"{MODEL}-{name}" for name in ("v1.1", "v2.0", "v2.1"))


def record_of(harness: TrainingHarness, version: str) -> VersionRecord:
    return next(one for one in harness.records() if one.version == version)


async def with_successor_of_the_first(harness: TrainingHarness) -> None:
    """v1.1 on the old base, and on the new one what v1.0 became."""
    await harness.run(request(hyperparameters={"beta": 0.7}, seed=5))
    first = record_of(harness, V10)
    made = record(
        V20,
        base="new",
        rebases=V10,
        adapter_uri=first.adapter_uri,
        adapter_sha256=first.adapter_sha256,
    )
    await harness.log.publish(VERSIONS, key=record_key(V20), event=made, event_id=V20)


async def test_a_version_is_made_again_on_another_base_from_its_parents_successor(
    harness: TrainingHarness,
) -> None:
    await with_successor_of_the_first(harness)
    outcome = await harness.run(request("again", rebases=V11, base="new"), dpo={"beta": 0.2})
    assert (outcome.phase, outcome.version) == (RunPhase.succeeded, V21)
    old, made = record_of(harness, V11), record_of(harness, V21)
    assert (made.rebases, made.base, made.parent) == (V11, "new", V20)
    assert (made.dataset, made.seed) == (old.dataset, old.seed)
    assert made.hyperparameters == old.hyperparameters
    job = harness.trainer_job("again")
    assert (job["base"], job["hyperparameters"]["beta"], job["seed"]) == ("new", 0.7, 5)
    assert made.gate.passed


async def test_sft_begins_the_chain_on_the_new_base_with_its_own_data(
    harness: TrainingHarness,
) -> None:
    demonstrations = harness.folder / "demonstrations.jsonl"
    rows = [
        {
            "messages": [
                {"role": role, "content": f"{role} {number}"} for role in ("user", "assistant")
            ]
        }
        for number in range(60)
    ]
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    roots = {"import_roots": (f"file://{harness.folder}",)}
    sft = request(
        "sft",
        method=TrainingMethod.sft,
        dataset_uri=str(demonstrations),
        override_gate=True,
        reason="r",
    )
    made = await harness.run(sft, **roots)
    demonstrations.unlink()
    again = request(
        "again",
        method=TrainingMethod.sft,
        rebases=made.version,
        base="new",
        override_gate=True,
        reason="r",
    )
    outcome = await harness.run(again)
    assert outcome.phase is RunPhase.succeeded, outcome.message
    second = record_of(harness, outcome.version)
    assert (second.method, second.parent, second.rebases) == ("sft", "", made.version)
    assert second.dataset == record_of(harness, made.version).dataset


async def test_without_the_parents_successor_the_job_says_what_is_missing(
    harness: TrainingHarness,
) -> None:
    await harness.run(request())
    outcome = await harness.run(request("again", rebases=V11, base="new"))
    assert outcome.phase is RunPhase.failed
    assert f"{V10}, the parent of {V11}, has no version on new" in outcome.message
    same = await harness.run(request("same", rebases=V11, base="base"))
    assert f"{V11} is on base already" in same.message


async def test_a_dataset_that_is_gone_is_told(harness: TrainingHarness) -> None:
    await with_successor_of_the_first(harness)
    dataset = record_of(harness, V11).dataset
    (harness.folder / "datasets" / dataset.dataset_id / "manifest.json").unlink()
    outcome = await harness.run(request("again", rebases=V11, base="new"))
    assert outcome.phase is RunPhase.failed
    assert f"{dataset.dataset_id}, the dataset of {V11}, is gone" in outcome.message


async def test_rows_that_do_not_fit_the_new_base_make_another_dataset(
    harness: TrainingHarness,
) -> None:
    await with_successor_of_the_first(harness)
    row = {"file": "train.jsonl", "line": 1, "reason": "too_long", "detail": "900 tokens"}
    (harness.folder / "fit.json").write_text(json.dumps({"left_out": [row]}))
    outcome = await harness.run(request("again", rebases=V11, base="new"))
    old, made = record_of(harness, V11), record_of(harness, outcome.version)
    assert made.dataset.dataset_id != old.dataset.dataset_id
    assert made.dataset.rows == old.dataset.rows - 1
    store = DatasetStore(harness.settings.datasets_uri)
    stored = store.read(made.dataset.dataset_id)
    assert stored is not None
    assert stored.manifest.refused["too_long"] == 1
    assert store.read(old.dataset.dataset_id) is not None


async def test_its_judge_is_not_published_while_the_old_base_is_served(
    harness: TrainingHarness,
) -> None:
    await with_successor_of_the_first(harness)
    await harness.run(request("again", rebases=V11, base="new"))
    rewards = [one.key for one in harness.log.all(VERSIONS) if one.key.endswith("/reward")]
    assert rewards == [f"{MODEL}-reward-v1/reward"]


def test_only_trained_versions_beside_a_stable_one_are_on_another_base() -> None:
    known = registry(v1_0=Lifecycle.stable)
    assert not known.on_another_base(record("a"))
    assert known.on_another_base(record("b", base="new"))
    assert not registry().on_another_base(record("b", base="new"))
