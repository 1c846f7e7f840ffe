"""A version made again from its record: the same bytes, or the reason why not; never published."""

from __future__ import annotations

from shared.contracts.events.training import RunPhase
from shared.contracts.topics import VERSIONS
from tests.unit.training.builders import MODEL, request
from tests.unit.training.harness import TrainingHarness

V11 = f"{MODEL}-v1.1"


async def test_the_same_record_makes_the_same_adapter_and_publishes_nothing(
    harness: TrainingHarness,
) -> None:
    await harness.run(request())
    before = len(harness.log.all(VERSIONS))
    outcome = await harness.run(request("again", rebuilds=V11))
    assert outcome.phase is RunPhase.succeeded
    assert outcome.message.startswith(f"{V11}: equal")
    assert len(harness.log.all(VERSIONS)) == before


async def test_other_weights_are_told_with_what_is_not_as_it_was(harness: TrainingHarness) -> None:
    await harness.run(request())
    harness.plan({"weights": "others"})
    outcome = await harness.run(request("again", rebuilds=V11), code_revision="beef")
    assert outcome.phase is RunPhase.rejected
    assert "differs in adapter_model.safetensors" in outcome.message
    assert "the code was cafe and is beef" in outcome.message


async def test_other_weights_without_another_reason_point_at_the_machine(
    harness: TrainingHarness,
) -> None:
    await harness.run(request())
    harness.plan({"weights": "others"})
    outcome = await harness.run(request("again", rebuilds=V11))
    assert "the hardware" in outcome.message


async def test_a_rebuild_trains_with_the_record_not_with_todays_settings(
    harness: TrainingHarness,
) -> None:
    await harness.run(request(hyperparameters={"beta": 0.7}, seed=5))
    await harness.run(request("again", rebuilds=V11), dpo={"beta": 0.2})
    job = harness.trainer_job("again")
    assert (job["hyperparameters"]["beta"], job["seed"]) == (0.7, 5)
    assert job["stages"] == ["dpo"]


async def test_an_unknown_version_is_refused(harness: TrainingHarness) -> None:
    outcome = await harness.run(request("again", rebuilds="nobody"))
    assert (outcome.phase, outcome.message) == (
        RunPhase.failed,
        f"rebuilds: nobody is no trained version of {MODEL}",
    )


async def test_a_dataset_that_is_gone_is_named(harness: TrainingHarness) -> None:
    await harness.run(request())
    for manifest in (harness.folder / "datasets").glob("*/manifest.json"):
        manifest.unlink()
    outcome = await harness.run(request("again", rebuilds=V11))
    assert outcome.phase is RunPhase.failed
    assert "is gone" in outcome.message
