from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.reconcile import (
    NEVER,
    Action,
    ActionKind,
    AdapterLimits,
    AdapterState,
    EngineAdapters,
    Slot,
    next_action,
    wanted_versions,
)
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    Lifecycle,
    VersionRecord,
    VersionState,
)
from shared.registry.versions import Version
from tests.support.rollouts import settings_record

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = AdapterLimits(max_adapters=4, drain_grace_s=5.0, drain_limit_s=60.0)
NAMES = [f"v{number}" for number in range(7)]


def version(
    name: str,
    lifecycle: Lifecycle | None,
    *,
    model: str = "m",
    released: bool = True,
    minute: int = 0,
    holdout: bool = False,
    actor: str = "",
) -> Version:
    at = START + timedelta(minutes=minute)
    record = VersionRecord(
        version=name,
        model=model,
        method="dpo",
        base="base",
        adapter_uri="memory://x",
        adapter_sha256="0" * 64,
        fingerprint=Fingerprint(dtype="float32", texts=()),
        dataset=DatasetRef(dataset_id="d", uri="d", sha256="d", rows=1),
        hyperparameters={},
        seed=0,
        code_revision="",
        gate=GateResult(passed=released),
        job_id="j",
        created_at=START,
    )
    state = (
        VersionState(
            version=name,
            model=model,
            state=lifecycle,
            holdout=holdout,
            actor=actor,
            token=0,
            at=at,
        )
        if lifecycle
        else None
    )
    return Version(record=record, state=state)


def names(versions: tuple[Version, ...]) -> list[str]:
    return [one.record.version for one in versions]


def test_stable_comes_first_and_only_the_newest_retired_one_stays() -> None:
    versions = [
        version("v0", Lifecycle.retired, minute=1),
        version("v1", Lifecycle.retired, minute=2),
        version("v2", Lifecycle.canary),
        version("v3", Lifecycle.stable),
        version("v4", Lifecycle.shadow),
        version("v5", Lifecycle.rejected),
        version("v6", None),
    ]
    assert names(wanted_versions(versions, (), 4)) == ["v3", "v2", "v4", "v1"]
    assert names(wanted_versions(versions, (), 2)) == ["v3", "v2"]


def test_a_model_without_a_stable_version_has_its_registered_ones_verified() -> None:
    versions = [
        version("v1", None, model="new"),
        version("v2", Lifecycle.stable),
        version("v3", None),
        version("v4", None, model="new", released=False),
    ]
    assert names(wanted_versions(versions, (), 4)) == ["v2", "v1"]


def test_registered_settings_are_served_for_their_evaluation_where_there_is_room() -> None:
    versions = [
        Version(record=settings_record("polite", model="m")),
        Version(record=settings_record("v1-polite", model="m", adapter_of="v1")),
        Version(record=settings_record("v0-polite", model="m", adapter_of="v0")),
        version("v1", Lifecycle.stable),
        version("v2", None),
    ]
    assert names(wanted_versions(versions, (), 1)) == ["v1", "polite", "v1-polite"]
    assert names(wanted_versions(versions, (), 2)) == ["v1", "polite", "v1-polite", "v0-polite"]


def test_a_reference_of_a_holdout_stays_whatever_became_of_it() -> None:
    versions = [
        version("v0", Lifecycle.retired, minute=1, holdout=True),
        version("v1", Lifecycle.retired, minute=2),
        version("v2", Lifecycle.stable),
    ]
    assert names(wanted_versions(versions, (), 4)) == ["v2", "v0", "v1"]


def test_unreleased_and_other_models_versions_are_not_wanted() -> None:
    versions = [
        version("v0", Lifecycle.stable, released=False),
        version("v1", Lifecycle.stable, model="other"),
        version("v2", Lifecycle.stable),
    ]
    assert names(wanted_versions(versions, ("m",), 4)) == ["v2"]


def test_each_model_keeps_its_own_way_back() -> None:
    versions = [
        version("a0", Lifecycle.retired, model="a", minute=1),
        version("b0", Lifecycle.retired, model="b", minute=2),
        version("a1", Lifecycle.stable, model="a"),
        version("b1", Lifecycle.stable, model="b"),
    ]
    assert names(wanted_versions(versions, (), 4)) == ["a1", "b1", "a0", "b0"]


def test_what_a_person_retired_leaves_and_is_no_way_back() -> None:
    versions = [
        version("v1", Lifecycle.retired, minute=1),
        version("v2", Lifecycle.retired, minute=2, actor="key"),
        version("v3", Lifecycle.stable),
    ]
    assert names(wanted_versions(versions, (), 4)) == ["v3", "v1"]


def act(
    wanted: list[str],
    slots: dict[str, Slot],
    loaded: list[str],
    *,
    busy: list[str] | None = None,
    now: float = 100.0,
    limits: AdapterLimits = LIMITS,
) -> Action | None:
    return next_action(
        wanted, slots, EngineAdapters(frozenset(loaded), frozenset(busy or ())), NAMES, now, limits
    )


def test_strangers_in_the_engine_are_left_alone_and_take_a_place() -> None:
    assert act([], {}, ["stranger"]) is None
    limits = replace(LIMITS, max_adapters=1)
    assert act(["v0"], {}, ["stranger"], limits=limits) is None


def test_refused_version_is_unloaded_at_once_and_not_tried_again() -> None:
    slots = {"v0": Slot("v0", AdapterState.refused, retry_at=NEVER)}
    assert act(["v0"], slots, ["v0"]) == Action(ActionKind.unload, "v0")
    assert act(["v0"], slots, []) is None
    assert act([], slots, []) == Action(ActionKind.forget, "v0")


@pytest.mark.parametrize(
    ("waited", "busy", "unloads"),
    [(4.9, False, False), (5.0, False, True), (59.0, True, False), (60.0, True, True)],
)
def test_drain_waits_for_requests_but_not_for_ever(
    waited: float, busy: bool, unloads: bool
) -> None:
    slots = {"v0": Slot("v0", AdapterState.draining, True, draining_since=100.0)}
    action = act([], slots, ["v0"], busy=["v0"] if busy else [], now=100.0 + waited)
    assert action == (Action(ActionKind.unload, "v0") if unloads else None)


def test_draining_version_wanted_again_is_kept_without_a_reload() -> None:
    slots = {"v0": Slot("v0", AdapterState.draining, True, draining_since=99.0)}
    assert act(["v0"], slots, ["v0"]) == Action(ActionKind.keep, "v0")


def test_unverified_leftover_of_an_earlier_agent_is_verified_before_it_is_ready() -> None:
    assert act(["v0"], {}, ["v0"]) == Action(ActionKind.verify, "v0")


class ReconcileModel:
    """An engine in which every adapter loads, and refuses to verify where told so."""

    def __init__(self, loaded: set[str], bad: set[str], slots: dict[str, Slot]) -> None:
        self.loaded = loaded
        self.bad = bad
        self.slots = slots
        self.now = 0.0

    def run(self, wanted: list[str], busy: set[str], limits: AdapterLimits) -> None:
        """Until nothing is to be done and no drain is under way; a bounded number of actions."""
        for _ in range(200):
            loaded = EngineAdapters(frozenset(self.loaded), frozenset(busy & self.loaded))
            action = next_action(wanted, self.slots, loaded, NAMES, self.now, limits)
            if action is None:
                if not any(s.state is AdapterState.draining for s in self.slots.values()):
                    return
                self.now += 1.0
                continue
            self.do(action, wanted, limits)
        raise AssertionError("it never comes to rest")

    def do(self, action: Action, wanted: list[str], limits: AdapterLimits) -> None:
        name = action.version
        slot = self.slots.get(name, Slot(name))
        match action.kind:
            case ActionKind.load:
                assert name in wanted
                assert name not in self.loaded, "a loaded name must never be loaded again"
                assert len(self.loaded) < limits.max_adapters
                self.loaded.add(name)
                self.slots[name] = replace(slot, state=AdapterState.verifying)
            case ActionKind.verify:
                assert name in self.loaded
                bad = name in self.bad
                self.slots[name] = Slot(
                    name,
                    AdapterState.refused if bad else AdapterState.ready,
                    not bad,
                    retry_at=NEVER if bad else 0.0,
                )
            case ActionKind.keep:
                assert slot.verified
                self.slots[name] = replace(slot, state=AdapterState.ready)
            case ActionKind.drain:
                assert name not in wanted
                self.slots[name] = replace(
                    slot, state=AdapterState.draining, draining_since=self.now
                )
            case ActionKind.unload:
                if slot.state is not AdapterState.refused:
                    assert name not in wanted
                    assert self.now - slot.draining_since >= limits.drain_grace_s
                    del self.slots[name]
                self.loaded.remove(name)
            case ActionKind.forget:
                del self.slots[name]


some_names = st.sets(st.sampled_from(NAMES), max_size=4)


@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.sampled_from(NAMES), unique=True, max_size=4), some_names, st.booleans()
        ),
        min_size=1,
        max_size=5,
    ),
    found=some_names,
    bad=some_names,
    grace=st.floats(0, 10),
    limit=st.floats(0, 30),
)
def test_comes_to_rest_at_what_is_wanted(
    rounds: list[tuple[list[str], set[str], bool]],
    found: set[str],
    bad: set[str],
    grace: float,
    limit: float,
) -> None:
    limits = AdapterLimits(4, grace, limit)
    harness = ReconcileModel(set(found), bad, {})
    for wanted, busy, restarted in rounds:
        if restarted:
            harness.loaded.clear()
            harness.slots.clear()
        harness.run(wanted, busy, limits)
        good = {name for name in wanted if name not in bad}
        assert harness.loaded == good
        assert {n for n, slot in harness.slots.items() if slot.state is AdapterState.ready} == good
        assert set(harness.slots) == set(wanted)
