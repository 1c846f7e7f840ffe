import json
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    Lifecycle,
    SettingsEvaluation,
    VersionMarks,
    VersionRecord,
    VersionState,
    evaluation_key,
    marks_key,
    record_key,
    settings_key,
    state_key,
)
from shared.registry.routing import RoutingState, RoutingTable
from shared.registry.versions import Registry
from shared.testing.clock import START
from tests.support.rollouts import settings_record


def version_record(version: str, **changes: Any) -> VersionRecord:
    fields: dict[str, Any] = {
        "version": version,
        "model": "assistant",
        "method": "dpo",
        "base": "starter",
        "adapter_uri": "file:///adapters/" + version,
        "adapter_sha256": "0" * 64,
        "fingerprint": Fingerprint(dtype="float32", texts=()),
        "dataset": DatasetRef(dataset_id="d", uri="file:///d", sha256="0" * 64, rows=1),
        "hyperparameters": {"beta": 0.1},
        "seed": 1,
        "code_revision": "abc",
        "gate": GateResult(passed=True),
        "job_id": "job",
        "created_at": START,
    }
    return VersionRecord(**(fields | changes))


def state(version: str, lifecycle: Lifecycle, token: int) -> VersionState:
    return VersionState(version=version, model="assistant", state=lifecycle, token=token, at=START)


def test_a_version_is_its_record_state_and_marks() -> None:
    registry = Registry()
    registry.apply(record_key("assistant-v1.0"), version_record("assistant-v1.0").to_json())
    version = registry.get("assistant-v1.0")
    assert version is not None
    assert version.lifecycle is Lifecycle.registered
    registry.apply(
        state_key("assistant-v1.0"), state("assistant-v1.0", Lifecycle.stable, 3).to_json()
    )
    marks = VersionMarks(version="assistant-v1.0", erased_rows=2, at=START)
    registry.apply(marks_key("assistant-v1.0"), marks.to_json())
    stable = registry.stable("assistant")
    assert stable is not None
    assert stable.marks == marks
    assert registry.stable("other") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "../v1"},
        {"model": "acme/assistant"},
        {"parent": "a/b"},
        {"adapter_sha256": "../../x"},
        {"adapter_sha256": ""},
        {"dataset": {"dataset_id": "../d", "uri": "x", "sha256": "0", "rows": 1}},
    ],
)
def test_text_of_a_record_that_would_become_another_path_is_refused(
    changes: dict[str, Any],
) -> None:
    fields = version_record("v1").model_dump(mode="json") | changes
    registry = Registry()
    with pytest.raises(ValidationError):
        registry.apply(record_key("v1"), json.dumps(fields).encode())
    assert registry.get("v1") is None


def test_a_version_of_settings_serves_the_base_or_the_adapter_of_a_trained_one() -> None:
    registry = Registry()
    registry.apply(record_key("v1"), version_record("v1").to_json())
    over = settings_record("v1-polite", adapter_of="v1")
    for record in (settings_record("polite"), over):
        registry.apply(settings_key(record.version), record.to_json())
    assert registry.settings("polite") == settings_record("polite")
    assert registry.settings("v1") is None
    served = {name: registry.adapter(name) for name in ("v1", "polite", "v1-polite", "nobody")}
    assert {name: record.version if record else "" for name, record in served.items()} == {
        "v1": "v1",
        "polite": "",
        "v1-polite": "v1",
        "nobody": "",
    }
    assert [version.record.version for version in registry.versions()] == [
        "v1",
        "polite",
        "v1-polite",
    ]


def test_settings_take_no_name_that_is_taken_and_no_trained_version_takes_theirs() -> None:
    registry = Registry()
    registry.apply(record_key("v1"), version_record("v1").to_json())
    registry.apply(settings_key("v1"), settings_record("v1").to_json())
    registry.apply(settings_key("v2"), settings_record("v2").to_json())
    registry.apply(record_key("v2"), version_record("v2").to_json())
    registry.apply(settings_key("v2"), settings_record("v2", base="other").to_json())
    first, second = registry.get("v1"), registry.get("v2")
    assert first is not None
    assert second is not None
    assert (first.record, registry.settings("v1")) == (version_record("v1"), None)
    assert second.record == settings_record("v2")


def test_the_newest_evaluation_of_settings_counts() -> None:
    registry = Registry()
    registry.apply(settings_key("polite"), settings_record("polite").to_json())
    for passed in (False, True):
        evaluation = SettingsEvaluation(
            version="polite",
            model="assistant",
            against="v1",
            prompts=64,
            pairs=60,
            gate=GateResult(passed=passed),
            actor="key",
            at=START,
        )
        registry.apply(evaluation_key("polite"), evaluation.to_json())
        version = registry.get("polite")
        assert version is not None
        assert version.evaluation == evaluation


def test_a_record_under_another_versions_key_is_refused() -> None:
    registry = Registry()
    for key in (record_key("v2"), record_key("../v1")):
        with pytest.raises(ValueError, match="under the key of"):
            registry.apply(key, version_record("v1").to_json())
    assert list(registry.versions()) == []


def test_a_models_name_in_a_routing_state_is_one_redis_key() -> None:
    fields = {"stable": "v1", "token": 0, "seq": 0, "at": START}
    assert RoutingState(model="assistant", **fields).model == "assistant"
    for model in ("acme/assistant", "routing-models\n", "", "*"):
        with pytest.raises(ValidationError):
            RoutingState(model=model, **fields)


def test_a_name_is_never_reused() -> None:
    registry = Registry()
    first = version_record("v1", seed=1)
    registry.apply(record_key("v1"), first.to_json())
    registry.apply(record_key("v1"), version_record("v1", seed=2).to_json())
    version = registry.get("v1")
    assert version is not None
    assert version.record == first


def test_a_deposed_leader_changes_no_state() -> None:
    registry = Registry()
    registry.apply(record_key("v1"), version_record("v1").to_json())
    registry.apply(state_key("v1"), state("v1", Lifecycle.rejected, 9).to_json())
    registry.apply(state_key("v1"), state("v1", Lifecycle.stable, 4).to_json())
    version = registry.get("v1")
    assert version is not None
    assert version.lifecycle is Lifecycle.rejected


def test_a_state_before_its_record_is_kept_and_unknown_parts_are_left() -> None:
    registry = Registry()
    registry.apply(state_key("v1"), state("v1", Lifecycle.stable, 1).to_json())
    assert registry.get("v1") is None
    assert registry.apply("v1/other", b"{}") is None
    registry.apply(record_key("v1"), version_record("v1").to_json())
    assert registry.stable("assistant") is not None
    with pytest.raises(ValidationError):
        registry.apply(record_key("v2"), b"{}")


def routing(token: int, seq: int, weight: int = 0, model: str = "assistant") -> RoutingState:
    return RoutingState(
        model=model,
        stable="v1",
        candidate="v2",
        rollout="r",
        phase=Phase.progressing,
        weight=weight,
        token=token,
        seq=seq,
        at=START + timedelta(seconds=seq),
    )


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, unique=True),
    st.integers(0, 10**6),
)
def test_the_newest_state_wins_in_any_order(orders: list[tuple[int, int]], seed: int) -> None:
    shuffled = list(orders)
    random.Random(seed).shuffle(shuffled)
    table = RoutingTable()
    for token, seq in shuffled:
        table.put(routing(token, seq))
    kept = table.get("assistant")
    assert kept is not None
    assert kept.order == max(orders)


def test_a_token_lower_than_an_election_is_ignored() -> None:
    table = RoutingTable()
    assert table.put(routing(1, 5))
    table.elect(7)
    assert not table.put(routing(1, 6))
    assert table.put(routing(7, 0))


def test_a_later_leaders_word_on_one_model_leaves_another_model_routed() -> None:
    table = RoutingTable()
    # Redis tells the states by model name, each of the leader that set it.
    assert table.put(routing(100, 0, model="alpha"))
    assert table.put(routing(10, 3, model="beta"))
    # The log then tells its history.
    table.elect(10)
    assert table.put(routing(10, 3, model="beta"))
    table.elect(100)
    assert table.put(routing(100, 0, model="alpha"))
    assert [state.model for state in table.models()] == ["alpha", "beta"]


@pytest.mark.parametrize("phase", [Phase.healthy, Phase.degraded])
def test_a_finished_rollout_routes_nothing_to_its_candidate(phase: Phase) -> None:
    decision = Decision(
        token=1,
        seq=1,
        kind=DecisionKind.rollback,
        model="assistant",
        rollout_id="r",
        stable="v1",
        candidate="v2",
        phase=phase,
        weight=500,
        actor="controller",
        reason="errors",
        at=START,
    )
    assert RoutingState.of(decision).weight == 0
    assert RoutingState.of(decision).candidate == ""
