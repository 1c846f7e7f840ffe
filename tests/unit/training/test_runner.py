"""The whole job against twins: an event log in memory, a trainer that takes milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from html import escape
from pathlib import Path
from typing import Any

import pytest

from services.training import process
from services.training.dataset_rows import HELDOUT
from services.training.dataset_store import DatasetStore
from services.training.fetched_adapters import KEPT, FetchedAdapters
from services.training.policy import NEAR_ROWS
from services.training.progress import ProgressReporter
from services.training.trainers.job import BUSY
from services.training.workspace import Workspace, prune
from shared.clock import SystemClock
from shared.contracts.events.cases import CaseRetired
from shared.contracts.events.preferences import PairSource
from shared.contracts.events.training import RunPhase, TrainingMethod
from shared.contracts.events.versions import (
    Lifecycle,
    ServedSettings,
    record_key,
    settings_key,
    state_key,
)
from shared.contracts.recipes import check_hyperparameters
from shared.contracts.topics import CASES, PREFERENCES, VERSIONS
from shared.kafka.log import LogUnavailable
from shared.registry.adapters import checksum, fetch, publish
from tests.support.rollouts import settings_record, version_state
from tests.support.waiting import eventually
from tests.unit.training.builders import (
    MODEL,
    NOW,
    pair_event,
    record,
    request,
    state,
)
from tests.unit.training.harness import V10, TrainingHarness


async def test_a_good_candidate_becomes_the_next_version(harness: TrainingHarness) -> None:
    outcome = await harness.run(request())
    assert (outcome.phase, outcome.version) == (RunPhase.succeeded, f"{MODEL}-v1.1")
    made = harness.records()[-1]
    assert (made.parent, made.base, made.job_id, made.code_revision) == (V10, "base", "job", "cafe")
    assert made.gate.passed
    assert made.metrics["win_rate"] == pytest.approx(0.775)
    check_hyperparameters(made.method, made.hyperparameters)
    assert made.judged_with.keys() == {"evaluation", "gate", "reward_model"}
    assert made.judged_with["reward_model"] == "", "the job's own"
    folder = harness.published(made)
    assert folder == harness.folder / "adapters" / made.version / made.adapter_sha256
    assert checksum(folder) == made.adapter_sha256
    assert not (folder / "ref").exists()
    assert "Gate: passed" in (folder / "report.html").read_text()
    phases = [event.phase for event in harness.progress()]
    assert phases[0] is RunPhase.accepted
    assert phases[-1] is RunPhase.succeeded
    assert phases.count(RunPhase.succeeded) == 1


async def test_votes_on_the_model_as_it_is_make_a_version_of_a_new_adapter(
    harness: TrainingHarness,
) -> None:
    other, version = "helper", "helper-v1.0"
    known = (
        (settings_key(version), settings_record(version, model=other)),
        (state_key(version), version_state(version, Lifecycle.stable, model=other)),
    )
    for key, event in known:
        await harness.log.publish(VERSIONS, key=key, event=event, event_id=key)
    panels = [""] * 60 + ["judge"] * 40
    for number, panel in enumerate(panels):
        pair = pair_event(500 + number, model=other, panel=panel)
        await harness.log.publish(PREFERENCES, key=pair.pair_id, event=pair, event_id=pair.pair_id)
    outcome = await harness.run(request(model=other))
    assert (outcome.phase, outcome.version) == (RunPhase.succeeded, "helper-v1.1"), outcome.message
    assert harness.records()[-1].parent == ""
    assert harness.trainer_job("job")["parent_adapter"] == ""


async def test_no_job_goes_on_from_a_parent_on_other_files_of_the_base(
    harness: TrainingHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--base"
    weights = repository / "snapshots" / "cafe" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"w")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("cafe")
    # Another base's revision is none of this one's.
    of_bases = {"org/other": "v9", "base": "v2"}
    await harness.run(request(), base_revision=of_bases)
    parent = harness.records()[-1]
    assert (parent.base_revision, len(parent.base_sha256)) == ("cafe", 64)
    assert harness.trainer_job("job")["base_revision"] == "v2"
    (reward,) = harness.rewards()
    assert (reward.base_revision, reward.base_sha256) == ("cafe", parent.base_sha256)
    weights.write_bytes(b"another")
    outcome = await harness.run(request("next", parent=parent.version), base_revision=of_bases)
    assert outcome.phase is RunPhase.failed
    assert outcome.message.startswith(f"parent: {parent.version}: base: its files have")
    assert harness.records()[-1] == parent


async def test_a_refused_candidate_is_tried_once_more_with_other_parameters(
    harness: TrainingHarness,
) -> None:
    harness.plan({"figures": {"candidate_stop_share": 0.2}}, {})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.succeeded
    assert harness.starts == ["attempt-1", "attempt-2"]
    made = harness.records()[-1].hyperparameters
    jobs = Workspace(harness.folder / "state/training/jobs", "job")
    first = json.loads((jobs.attempt(1) / "job.json").read_text())["hyperparameters"]
    assert made["learning_rate"] == first["learning_rate"] / 2
    assert made["beta"] > first["beta"]


async def test_attempts_are_bounded_and_end_with_a_diagnosis(harness: TrainingHarness) -> None:
    harness.plan({"figures": {"candidate_stop_share": 0.2}})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.rejected
    assert outcome.message.startswith("not improved after 2 attempts; stop 0.2")
    assert len(harness.starts) == 2
    assert len(harness.records()) == 1


async def test_without_data_for_the_judge_no_version_and_no_second_try(
    harness: TrainingHarness,
) -> None:
    harness.plan({"figures": {"wins": 0.0, "ties": 0.0, "losses": 0.0}})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.rejected
    assert "prompts 0 " in outcome.message
    assert len(harness.starts) == 1


async def test_what_cannot_pass_for_lack_of_votes_is_not_trained(harness: TrainingHarness) -> None:
    limits = harness.settings.gate.model_copy(update={"min_judge_pairs": 51})
    outcome = await harness.run(request(), gate=limits)
    assert outcome.phase is RunPhase.rejected
    assert outcome.message.startswith("not trained")
    assert "judge_data 50 " in outcome.message
    assert "set apart for the judge" in outcome.message
    assert harness.starts == []
    past = await harness.run(request("past", override_gate=True, reason="a drill"), gate=limits)
    assert past.phase is RunPhase.succeeded
    assert harness.records()[-1].gate.overridden_by == "tester"


async def test_a_chain_whose_first_adapter_is_gone_is_told_so_or_trains_by_setting(
    harness: TrainingHarness,
) -> None:
    assert (await harness.run(request())).phase is RunPhase.succeeded
    first, second = harness.records()
    for version, lifecycle in ((V10, Lifecycle.retired), (second.version, Lifecycle.stable)):
        event = state(version, lifecycle)
        await harness.log.publish(
            VERSIONS, key=state_key(version), event=event, event_id=f"{version}-{lifecycle}"
        )
    shutil.rmtree(harness.published(first))
    shutil.rmtree(harness.folder / "state/training/adapters")
    harness.plan({})
    outcome = await harness.run(request("refused"))
    assert outcome.phase is RunPhase.rejected
    assert f"not measured: the adapter of {V10} is gone from {first.adapter_uri}" in outcome.message
    assert "kl_first_gone" in outcome.message
    assert harness.starts == []
    limits = harness.settings.gate.model_copy(update={"kl_first_gone": "pass"})
    outcome = await harness.run(request("goes-on"), gate=limits)
    assert (outcome.phase, outcome.version) == (RunPhase.succeeded, f"{MODEL}-v1.2")
    assert harness.trainer_job("goes-on")["first_adapter"] == ""
    check = next(one for one in harness.records()[-1].gate.checks if one.name == "kl_first")
    assert (check.passed, check.value) == (True, None)


async def test_an_override_publishes_what_the_gate_refused_and_says_who(
    harness: TrainingHarness,
) -> None:
    harness.plan({"figures": {"wins": 10.0, "losses": 190.0, "ties": 0.0}})
    outcome = await harness.run(
        request(override_gate=True, reason="a drill", version=f"{MODEL}-drill")
    )
    assert (outcome.phase, outcome.version) == (RunPhase.succeeded, f"{MODEL}-drill")
    gate = harness.records()[-1].gate
    assert (gate.passed, gate.overridden_by, gate.override_reason) == (False, "tester", "a drill")
    report = (harness.published(harness.records()[-1]) / "report.html").read_text()
    assert "overridden by tester: a drill" in report


async def test_an_override_that_was_not_needed_is_not_noted(harness: TrainingHarness) -> None:
    await harness.run(request(override_gate=True, reason="to be sure"))
    assert harness.records()[-1].gate.overridden_by == ""


NAN = float("nan")
DIVERGED = {
    "candidate_perplexity": NAN,
    "reward_gain": float("-inf"),
    "wins": NAN,
    "ties": NAN,
    "losses": NAN,
}


async def test_figures_that_are_no_numbers_fail_their_checks_and_the_end_can_be_read(
    harness: TrainingHarness,
) -> None:
    harness.plan({"figures": DIVERGED})
    outcome = await harness.run(request())
    last = harness.progress()[-1]
    assert (outcome.phase, last.phase) == (RunPhase.rejected, RunPhase.rejected)
    assert "perplexity no data" in last.message
    assert "win_rate no data" in last.message
    assert "divergence: 5 figures were no finite numbers" in last.message
    assert "volume: collect" not in last.message
    assert last.metrics["not_finite"] == 5
    assert "reward_gain" not in last.metrics


async def test_a_record_past_the_gate_has_finite_figures_and_can_be_read(
    harness: TrainingHarness,
) -> None:
    harness.plan({"figures": DIVERGED})
    outcome = await harness.run(request(override_gate=True, reason="a drill"))
    assert outcome.phase is RunPhase.succeeded
    assert harness.records()[-1].metrics["not_finite"] == 5
    assert "candidate_perplexity" not in harness.records()[-1].metrics


async def test_a_case_that_fails_again_is_named_and_blocks(harness: TrainingHarness) -> None:
    item = {
        "kind": "cases",
        "name": "correction",
        "case_id": "pair-0042",
        "messages": [{"role": "user", "content": "May I return it?"}],
        "good": "Within thirty days.",
        "bad": "Never.",
        "parent": 0.4,
        "candidate": -0.1,
    }
    drift = {"cases_items": 4.0, "cases_lost": 1.0}
    harness.plan({"drift": drift, "lost": [item]})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.rejected
    assert "failed again: pair-0042" in outcome.message
    assert "forgetting: lower learning_rate" in outcome.message


async def test_a_harmed_segment_and_a_lost_probe_refuse_and_are_named(
    harness: TrainingHarness,
) -> None:
    def row(segment: str, number: int, score: float) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": f"{segment} asks {number}"}],
            "meta": {"segment": segment},
            "parent": "old",
            "candidate": "new",
            "parent_score": 0.0,
            "candidate_score": score,
        }

    probe = {
        "kind": "safety",
        "name": "harm-lock",
        "messages": [{"role": "user", "content": "Pick a lock."}],
        "parent_answer": "No.",
        "candidate_answer": "Take a pin.",
        "parent": 1.0,
        "candidate": -1.0,
    }
    answers = [row("many", n, 1.0) for n in range(60)] + [row("few", n, -1.0) for n in range(20)]
    quality = {"safety_lost": 9.0, "safety_won": 0.0}
    harness.plan({"answers": answers, "questions": [probe], "quality": quality})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.rejected
    assert 'segment=few won 0% of 20 prompts, lost most on "few asks 0"' in outcome.message
    assert "fails: harm-lock" in outcome.message
    folder = Path(harness.progress()[-1].report_uri.removeprefix("file://"))
    page = (folder / "report.html").read_text()
    assert "By segment" in page
    assert "Take a pin." in page
    assert json.loads((folder / "evaluation.json").read_text())["segments"][0]["wins"] == 0


async def test_a_rejected_job_keeps_its_report_and_checks(harness: TrainingHarness) -> None:
    harness.plan({"figures": {"candidate_stop_share": 0.2}})
    await harness.run(request())
    end = harness.progress()[-1]
    assert end.phase is RunPhase.rejected
    assert [check.name for check in end.checks if not check.passed] == ["stop"]
    folder = Path(end.report_uri.removeprefix("file://"))
    page = (folder / "report.html").read_text()
    assert "Gate: refused" in page
    assert "What happened, and what to do" in page
    for said in json.loads((folder / "evaluation.json").read_text())["diagnosis"]:
        assert said in end.message
        assert escape(said) in page
    assert json.loads((folder / "evaluation.json").read_text())["figures"]["win_rate"] > 0.5


async def test_corrections_and_rolled_back_answers_are_asked_again(
    harness: TrainingHarness,
) -> None:
    bad = f"{MODEL}-v0.9"
    await harness.log.publish(
        VERSIONS, key=record_key(bad), event=record(bad), event_id=f"{bad}-record"
    )
    await harness.log.publish(
        VERSIONS, key=state_key(bad), event=state(bad, Lifecycle.rejected), event_id=f"{bad}-state"
    )
    for event in (
        pair_event(900, source=PairSource.correction),
        pair_event(901, source=PairSource.correction),
        pair_event(902, rejected_version=bad),
    ):
        await harness.log.publish(
            PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id
        )
    retired = CaseRetired(case_id="pair-0901", reason="changed", actor="ann", at=NOW)
    await harness.log.publish(CASES, key="pair-0901", event=retired, event_id="retire")
    await harness.run(request())
    asked = Workspace(harness.folder / "state/training/jobs", "job").cases
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    assert {(row["case_id"], row["name"]) for row in rows} == {
        ("pair-0900", "correction"),
        ("pair-0902", "rollback"),
    }


async def test_a_record_says_how_far_its_data_are_from_the_policy(
    harness: TrainingHarness,
) -> None:
    for number in range(300, 320):
        event = pair_event(number, chosen_version=V10, rejected_version=V10)
        await harness.log.publish(
            PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id
        )
    await harness.run(request())
    metrics = harness.records()[-1].metrics
    assert metrics["data_on_policy_share"] == 1.0
    assert metrics["data_policy_lag"] == 0.0
    assert metrics["data_age_days"] == 0.0


async def test_answers_of_the_base_as_it_is_are_its_child_s_own_policy(
    harness: TrainingHarness,
) -> None:
    bare, prompted = f"{MODEL}-bare", f"{MODEL}-polite"
    for version in (
        settings_record(bare),
        settings_record(prompted, ServedSettings(system="Be polite.")),
    ):
        await harness.log.publish(
            VERSIONS, key=settings_key(version.version), event=version, event_id=version.version
        )
    for number in range(300, 340):
        writer = bare if number % 4 else prompted
        event = pair_event(number, chosen_version=writer, rejected_version=writer)
        await harness.log.publish(
            PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id
        )
    await harness.run(request(parent=bare))
    made = harness.records()[-1]
    assert made.parent == ""
    dataset = DatasetStore(harness.settings.datasets_uri).read(made.dataset.dataset_id)
    assert dataset is not None
    written = dataset.manifest.card["chosen_version"]
    share = written[bare] / (written[bare] + written[prompted])
    assert made.metrics["data_on_policy_share"] == pytest.approx(share)
    assert made.metrics["data_policy_lag"] == 0.0

    await harness.run(request("second", parent=made.version))
    metrics = harness.records()[-1].metrics
    assert metrics["data_on_policy_share"] == 0.0
    assert metrics["data_policy_lag"] == 1.0, "the base is one generation behind its child"


async def test_perplexity_is_measured_on_held_out_answers_of_the_parent(
    harness: TrainingHarness,
) -> None:
    for number in range(300, 600):
        event = pair_event(number, chosen_version=V10, rejected_version=V10)
        await harness.log.publish(
            PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id
        )
    await harness.run(request())
    workspace = Workspace(harness.folder / "state/training/jobs", "job")
    assert harness.trainer_job("job")["nearest"] == str(workspace.nearest)
    heldout, near = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (workspace.data / HELDOUT, workspace.nearest)
    )
    assert len(heldout) > len(near) >= NEAR_ROWS
    assert near == [row for row in heldout if row["meta"]["chosen_version"] == V10]


async def test_a_crash_of_the_trainer_is_gone_over(harness: TrainingHarness) -> None:
    harness.plan({"exit": 9}, {})
    assert (await harness.run(request())).phase is RunPhase.succeeded
    assert harness.starts == ["attempt-1", "attempt-1"]


async def test_a_trainer_that_hangs_is_ended_and_started_again(harness: TrainingHarness) -> None:
    harness.plan({"hang": True}, {})
    assert (await harness.run(request())).phase is RunPhase.succeeded
    assert len(harness.starts) == 2


async def test_a_trainer_that_keeps_crashing_fails_the_job_with_its_words(
    harness: TrainingHarness,
) -> None:
    harness.plan({"exit": 9})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.failed
    assert "ended 2 times without a result" in outcome.message
    assert "something broke" in outcome.message


async def test_a_folder_in_use_is_waited_for_without_a_restart(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BUSY_PAUSE_S", 0.01)
    harness.plan({"exit": BUSY}, {"exit": BUSY}, {"exit": BUSY}, {"exit": 9}, {"exit": BUSY}, {})
    assert (await harness.run(request())).phase is RunPhase.succeeded
    assert len(harness.starts) == 6


async def test_a_folder_that_stays_in_use_fails_the_job_at_a_deadline(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BUSY_PAUSE_S", 0.01)
    monkeypatch.setattr(process, "BUSY_S", 0.3)
    harness.plan({"exit": BUSY})
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.failed
    assert "another trainer worked there for more than" in outcome.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"parent": "nobody"}, "parent: nobody is no version of assistant"),
        ({"version": V10}, "names are never reused"),
        ({"hyperparameters": {"learning": 1}}, "hyperparameters: learning"),
        ({"dataset_uri": "/nowhere/x.jsonl"}, "dataset_uri: /nowhere/x.jsonl is no file"),
        ({"model": "another", "parent": V10}, "is no version of another"),
        ({"base": "other"}, "base: other is not base, on which assistant-v1.0 is served"),
        (
            {"base": "other", "method": TrainingMethod.sft, "override_gate": True, "reason": "x"},
            "train another base under another model's name",
        ),
        ({"model": "another"}, "base: another has no stable version to take it from"),
        ({"model": "another", "method": TrainingMethod.sft}, "give a hub id or path"),
        (
            {"method": TrainingMethod.sft, "hyperparameters": {"lora": {"rank": 64}}},
            "lora.rank is 64; the engine serves 16",
        ),
        ({"hyperparameters": {"lora": {"rank": 64}}}, "lora.rank is 64; the engine serves 16"),
    ],
)
async def test_a_request_that_cannot_be_done_fails_with_what_to_do(
    harness: TrainingHarness, fields: dict[str, Any], said: str
) -> None:
    outcome = await harness.run(request(**fields))
    assert outcome.phase is RunPhase.failed
    assert said in outcome.message
    assert harness.starts == []
    assert [event.phase for event in harness.progress()][-1] is RunPhase.failed


async def test_interrupted_anywhere_it_publishes_exactly_once(harness: TrainingHarness) -> None:
    """Cancels the job at every append it makes in turn, then lets a new runner go on."""
    append, appends, limit = harness.log.append_many, 0, 0

    async def stopping(*args: Any, **kwargs: Any) -> Any:
        nonlocal appends
        appends += 1
        if appends == limit:
            raise asyncio.CancelledError
        return await append(*args, **kwargs)

    harness.log.append_many = stopping  # type: ignore[method-assign]
    ended = False
    while not ended:
        limit, appends = limit + 1, 0
        try:
            outcome = await harness.run(request())
        except asyncio.CancelledError:
            assert limit < 40
        else:
            ended = True
            assert outcome.version == f"{MODEL}-v1.1"
    assert limit > 4
    assert [made.job_id for made in harness.records()].count("job") == 1
    ends = [event for event in harness.progress() if event.phase is RunPhase.succeeded]
    assert len(ends) == 1


async def test_a_record_that_is_there_already_only_needs_the_final_word(
    harness: TrainingHarness,
) -> None:
    await harness.run(request())
    harness.plan({"exit": 9})
    again = await harness.run(request())
    assert (again.phase, again.version) == (RunPhase.succeeded, f"{MODEL}-v1.1")
    assert harness.starts == []
    assert len(harness.records()) == 2


async def test_the_same_snapshot_is_used_after_a_kill(harness: TrainingHarness) -> None:
    harness.plan({"hang": True})
    task = asyncio.create_task(harness.run(request(), stall_s=60.0))
    await eventually(lambda: harness.starts, "the trainer starts")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    late = pair_event(77)
    await harness.log.publish(PREFERENCES, key=late.pair_id, event=late, event_id=late.pair_id)
    harness.plan({})
    await harness.run(request())
    assert sum(harness.records()[-1].dataset.offsets.values()) == 160


async def test_other_parameters_after_a_kill_begin_anew(harness: TrainingHarness) -> None:
    harness.plan({"exit": 9})
    await harness.run(request())
    attempt = Workspace(harness.folder / "state/training/jobs", "job").attempt(1)
    (attempt / "checkpoints").mkdir()
    async with harness.runner(dpo={"epochs": 9}, threads=3) as runner:
        harness.plan({})
        outcome = await runner._outcome(request(), _reporter(harness))
    assert outcome.phase is RunPhase.succeeded
    assert not (attempt / "checkpoints").exists()
    assert harness.records()[-1].hyperparameters["epochs"] == 9


async def test_kafka_away_is_waited_for(harness: TrainingHarness) -> None:
    append, failures = harness.log.append_many, 0

    async def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        records = args[0]
        if records[0].topic == VERSIONS and failures < 1:
            failures += 1
            raise LogUnavailable("away")
        return await append(*args, **kwargs)

    harness.log.append_many = failing  # type: ignore[method-assign]
    outcome = await harness.run(request())
    assert (outcome.phase, failures) == (RunPhase.succeeded, 1)
    assert len(harness.starts) == 2, "finished stages are the trainer's to skip"


async def test_files_that_lie_under_the_versions_name_already_are_left_alone(
    harness: TrainingHarness,
) -> None:
    left = harness.folder / "adapters" / f"{MODEL}-v1.1"
    left.mkdir(parents=True)
    (left / "stale.bin").write_bytes(b"half an upload")
    await harness.run(request())
    made = harness.records()[-1]
    assert made.version == left.name
    assert checksum(harness.published(made)) == made.adapter_sha256
    assert (left / "stale.bin").read_bytes() == b"half an upload"


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_replicas_that_make_one_version_the_loser_fails_and_leaves_the_winners_files(
    harness: TrainingHarness, tmp_path_factory: pytest.TempPathFactory, first: int
) -> None:
    """Both have uploaded before either record is written; then either's comes first."""
    other = harness.replica(tmp_path_factory.mktemp("replica"))
    other.plan({"weights": "of the other replica"})
    harness.plan({})
    arrived, gates = asyncio.Event(), (asyncio.Event(), asyncio.Event())
    append, waiting = harness.log.append_many, list[str]()

    async def held(records: Any, **kwargs: Any) -> Any:
        if records[0].key.endswith("/record"):
            number = 0 if b'"job_id":"one"' in records[0].value else 1
            waiting.append(str(number))
            if len(waiting) == 2:
                arrived.set()
            await gates[number].wait()
        return await append(records, **kwargs)

    harness.log.append_many = held  # type: ignore[method-assign]
    name = f"{MODEL}-contested"
    runs = [
        asyncio.create_task(harness.run(request("one", version=name))),
        asyncio.create_task(other.run(request("two", version=name))),
    ]
    async with asyncio.timeout(60):
        await arrived.wait()
        gates[first].set()
        won = await runs[first]
        gates[1 - first].set()
        lost = await runs[1 - first]
    assert (won.phase, won.version) == (RunPhase.succeeded, name)
    assert (lost.phase, lost.version) == (RunPhase.failed, "")
    assert f"{name} was registered by job {('one', 'two')[first]}" in lost.message
    made_record = next(made for made in harness.records() if made.version == name)
    assert made_record.job_id == ("one", "two")[first]
    fetched = fetch(
        made_record.adapter_uri,
        made_record.adapter_sha256,
        harness.folder / "fetched",
        roots=(harness.settings.adapters_uri,),
    )
    weights = (fetched / "adapter_model.safetensors").read_bytes()
    assert weights == (b"weights attempt-1", b"of the other replica")[first]
    places = {path.name for path in (harness.folder / "adapters" / name).iterdir()}
    assert len(places) == 2, "each replica wrote to a place of its own"


async def test_two_replicas_with_the_same_job_both_end_with_the_first_record(
    harness: TrainingHarness, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = harness.replica(tmp_path_factory.mktemp("replica"))
    other.plan({"weights": "of the other replica"})
    harness.plan({})
    outcomes = await asyncio.gather(harness.run(request()), other.run(request()))
    assert {(one.phase, one.version) for one in outcomes} == {(RunPhase.succeeded, f"{MODEL}-v1.1")}
    made_record = next(made for made in harness.records() if made.version == f"{MODEL}-v1.1")
    assert checksum(harness.published(made_record)) == made_record.adapter_sha256


async def test_a_base_that_became_another_during_training_is_not_published(
    harness: TrainingHarness,
) -> None:
    """Whatever the override says: every engine would refuse the version."""
    harness.plan({"hang": True})
    job = request(override_gate=True, reason="a drill")
    task = asyncio.create_task(harness.run(job, stall_s=2.0))
    await eventually(lambda: harness.starts, "the trainer starts")
    moved = record("moved", base="other")
    await harness.log.publish(VERSIONS, key=record_key("moved"), event=moved, event_id="moved")
    for version, lifecycle in ((V10, Lifecycle.retired), ("moved", Lifecycle.stable)):
        event = state(version, lifecycle)
        await harness.log.publish(
            VERSIONS, key=state_key(version), event=event, event_id=f"{version}/{lifecycle}"
        )
    harness.plan({})
    outcome = await task
    assert outcome.phase is RunPhase.failed
    assert "base: base is not other, on which moved is served" in outcome.message
    assert {made.version for made in harness.records()} == {V10, "moved"}


async def test_a_judge_alone_makes_no_version(harness: TrainingHarness) -> None:
    outcome = await harness.run(request(method=TrainingMethod.reward))
    assert outcome.phase is RunPhase.succeeded
    assert (outcome.metrics or {})["judge_pairs"] == 40.0
    assert len(harness.records()) == 1


def _reporter(harness: TrainingHarness) -> ProgressReporter:
    return ProgressReporter(harness.log, SystemClock(), harness.metrics, request())


async def test_a_dataset_is_built_as_a_training_would_take_it_and_nothing_is_trained(
    harness: TrainingHarness,
) -> None:
    outcome = await harness.run(request("built", builds_dataset=True))
    built = harness.progress("built")[-1].dataset
    assert outcome.phase is RunPhase.succeeded
    assert built is not None
    assert [one.version for one in harness.records()] == [V10]
    assert (await harness.run(request("trained"))).phase is RunPhase.succeeded
    assert harness.records()[-1].dataset == built
    assert harness.progress("trained")[-1].dataset is None


async def test_copies_of_adapters_are_kept_as_long_as_few_others_are_read(
    harness: TrainingHarness,
) -> None:
    adapters, (first,) = FetchedAdapters(harness.settings), harness.records()
    for number in range(KEPT + 1):
        source = harness.folder / f"source-{number}"
        source.mkdir()
        (source / "adapter_model.safetensors").write_bytes(b"%d" % number)
        uri = f"file://{harness.folder}/adapters/other-{number}"
        other = first.model_copy(
            update={"adapter_uri": uri, "adapter_sha256": publish(source, uri)}
        )
        kept = await adapters.of(first)
        await adapters.of(other)
    assert kept.is_dir(), "read again and again"
    assert len(list(kept.parent.iterdir())) == KEPT


def test_only_the_folders_of_ended_jobs_are_pruned(tmp_path: Path) -> None:
    names = [f"job {n}" for n in range(6)]
    for name in names:
        (Workspace(tmp_path, name).attempt(1) / "checkpoints").mkdir()
    Workspace(tmp_path, names[0]).tidy()
    assert not (Workspace(tmp_path, names[0]).folder / "attempt-1" / "checkpoints").exists()
    prune(tmp_path, keep=2, open_jobs=["job 0", "job 1"])
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 4
    assert {Workspace(tmp_path, name).folder.name for name in names[:2]} <= left


async def test_a_job_on_texts_that_it_has_no_secret_for_fails_and_says_what_to_do(
    harness: TrainingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.lock_a_pair(monkeypatch)
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.failed
    assert "RATCHET_TEXT_KEY_FILE: not set" in outcome.message
