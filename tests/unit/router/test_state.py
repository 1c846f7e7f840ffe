"""The arm of a request, freshness (invariant 4), and which keys are counted."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.assignment import KeyKind
from services.router.metrics import RouterMetrics
from services.router.series_lifecycle import SeriesLifecycle
from services.router.state import REDIS, REGISTRY, ROLLOUTS, RouterState
from shared.contracts.events.rollouts import Phase
from shared.registry.routing import RoutingState
from shared.testing.clock import ManualClock

STALE_AFTER_S = 60.0


def state_of(clock, weight, *, rollout="r1", seq=0, token=0, age_s=0.0, model="m"):
    return RoutingState(
        model=model,
        stable="m-v1.0",
        candidate="m-v1.1" if rollout else "",
        rollout=rollout,
        phase=Phase.progressing if rollout else Phase.healthy,
        weight=weight,
        token=token,
        seq=seq,
        at=clock.now() - timedelta(seconds=age_s),
    )


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def keys():
    return Counter()


@pytest.fixture
def router(clock, keys):
    def count(_model, arm, rollout):
        keys[rollout, arm] += 1

    return RouterState(clock, stale_after_s=STALE_AFTER_S, assigned=count, max_keys=1_000)


def ask(router, user, kind=KeyKind.user):
    return router.choose(router.route("m"), "default", kind, user)


def test_outside_a_rollout_stable_answers_under_no_arm(router, clock):
    router.put(state_of(clock, 0, rollout=""))
    choice = ask(router, "u")
    assert (choice.version, choice.arm, choice.rollout, choice.fallback) == ("m-v1.0", "", "", "")


def test_at_weight_0_nobody_is_on_the_candidate(router, clock):
    router.put(state_of(clock, 0))
    arms = {ask(router, f"u{number}").arm for number in range(2_000)}
    assert arms == {"stable"}


def test_at_full_weight_everybody_is_and_falls_back_to_stable(router, clock):
    router.put(state_of(clock, 10_000))
    choices = {ask(router, f"u{number}") for number in range(200)}
    assert {(one.version, one.arm, one.fallback) for one in choices} == {
        ("m-v1.1", "candidate", "m-v1.0")
    }


def test_two_replicas_agree(clock):
    replicas = [RouterState(clock, stale_after_s=60) for _ in range(2)]
    for replica in replicas:
        replica.put(state_of(clock, 2_000))
    for number in range(500):
        one, other = (ask(replica, f"u{number}") for replica in replicas)
        assert one == other


@given(st.permutations(range(6)))
def test_the_newest_state_counts_in_whichever_order_they_come(order):
    clock = ManualClock()
    router = RouterState(clock, stale_after_s=60)
    for seq in order:
        router.put(state_of(clock, seq * 100, seq=seq))
    (route,) = router.routes()
    assert route.state.weight == 500


def test_a_deposed_leader_is_ignored(router, clock):
    router.put(state_of(clock, 500, token=5))
    router.table.elect(9)
    assert not router.put(state_of(clock, 10_000, token=5, seq=99))
    assert router.route("m").state.weight == 500


def test_without_fresh_state_everyone_goes_to_stable(router, clock, keys):
    router.put(state_of(clock, 10_000))
    clock.advance(STALE_AFTER_S)
    assert ask(router, "a").arm == "candidate"
    clock.advance(0.001)
    choice = ask(router, "a")
    assert (choice.version, choice.arm, choice.rollout) == ("m-v1.0", "", "")
    assert router.stale() == ("m",)
    assert router.age_s() == pytest.approx(STALE_AFTER_S + 0.001)
    assert keys == {("r1", "candidate"): 1}


def test_a_sign_of_life_makes_it_fresh_again(router, clock):
    router.put(state_of(clock, 10_000))
    clock.advance(100)
    router.put(state_of(clock, 10_000, seq=1, age_s=10))
    assert ask(router, "a").arm == "candidate"
    assert router.age_s() == pytest.approx(10)
    clock.advance(50.001)
    assert router.stale() == ("m",)


def test_an_old_state_that_comes_late_is_stale_at_once(router, clock):
    router.put(state_of(clock, 10_000, age_s=61))
    assert ask(router, "a").version == "m-v1.0"


def test_a_controller_whose_clock_runs_ahead_gains_no_time(router, clock):
    router.put(state_of(clock, 10_000, age_s=-3_600))
    clock.advance(STALE_AFTER_S + 1)
    assert ask(router, "a").version == "m-v1.0"


@pytest.mark.parametrize(("weight", "rollout"), [(0, ""), (0, "r1")])
def test_nothing_goes_stale_where_no_candidate_has_traffic(router, clock, weight, rollout):
    router.put(state_of(clock, weight, rollout=rollout))
    clock.advance(86_400)
    assert router.stale() == ()
    assert router.age_s() == 0.0
    assert ask(router, "a").version == "m-v1.0"


def test_distinct_keys_are_counted_once_a_weight(router, clock, keys):
    router.put(state_of(clock, 5_000))
    for _ in range(3):
        for number in range(200):
            ask(router, f"u{number}")
    assert sum(keys.values()) == 200
    router.put(state_of(clock, 5_000, seq=1))
    ask(router, "u0")
    assert sum(keys.values()) == 200
    router.put(state_of(clock, 8_000, seq=2))
    for number in range(200):
        ask(router, f"u{number}")
    assert sum(keys.values()) == 400


def test_key_memory_is_bounded_and_stops_for_both_arms(router, clock, keys):
    router.put(state_of(clock, 5_000))
    for number in range(3_000):
        ask(router, f"u{number}")
    assert sum(keys.values()) == 1_000
    assert 400 < keys["r1", "candidate"] < 600


def test_traces_count_without_being_remembered(router, clock, keys):
    router.put(state_of(clock, 5_000))
    for number in range(3_000):
        ask(router, f"{number:032x}", KeyKind.trace)
    assert sum(keys.values()) == 3_000
    assert not router.route("m").keys


def test_versions_of_a_route_may_be_named_before_the_registry_is_read(router, clock):
    router.put(state_of(clock, 500))
    choice = router.explicit("m-v1.1")
    assert (choice.model, choice.version, choice.arm, choice.rollout) == ("m", "m-v1.1", "", "")
    assert router.explicit("m-v9.9") is None
    writers = {name: router.writer_of(name) for name in ("m", "m-v1.1", "other")}
    assert {name: (one.model, one.version) for name, one in writers.items()} == {
        "m": ("m", "m-v1.0"),
        "m-v1.1": ("m", "m-v1.1"),
        "other": ("other", ""),
    }


def test_one_source_is_enough_to_route(router):
    assert not router.knows_routes
    router.heard(REDIS)
    assert router.knows_routes
    assert not router.knows_versions
    router.heard(ROLLOUTS)
    router.heard(REGISTRY)
    assert router.knows_versions


def test_a_state_without_a_candidate_routes_to_stable(router, clock):
    state = state_of(clock, 10_000)
    router.put(state.model_copy(update={"candidate": ""}))
    assert ask(router, "a").version == "m-v1.0"


def samples(metrics):
    return {
        (sample.name, sample.labels.get("arm"), sample.labels.get("rollout")): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_series_of_a_rollout_live_from_first_sight_until_a_while_after_it(clock):
    metrics = RouterMetrics(("gold",))
    series = SeriesLifecycle(metrics, clock, grace_s=900)
    router = RouterState(clock, stale_after_s=60, changed=series.follow)
    router.put(state_of(clock, 0))
    before = samples(metrics)
    for arm in ("stable", "candidate", "fallback"):
        assert before["ratchet_router_requests_total", arm, "r1"] == 0
        assert before["ratchet_router_request_duration_seconds_count", arm, "r1"] == 0
    for arm in ("stable", "candidate"):
        assert before["ratchet_router_assigned_keys_total", arm, "r1"] == 0
    assert before["ratchet_router_rollout_seen", None, "r1"] == 1

    router.put(state_of(clock, 0, rollout="", seq=1))
    clock.advance(899)
    series.drop_ended()
    assert ("ratchet_router_requests_total", "stable", "r1") in samples(metrics)
    clock.advance(1)
    series.drop_ended()
    assert not [key for key in samples(metrics) if key[2] == "r1"]


def test_a_superseding_rollout_ends_the_one_before(clock):
    metrics = RouterMetrics()
    series = SeriesLifecycle(metrics, clock, grace_s=10)
    series.follow(state_of(clock, 500, rollout="r1"))
    series.follow(state_of(clock, 500, rollout="r2", seq=1))
    clock.advance(10)
    series.drop_ended()
    assert {key[2] for key in samples(metrics) if key[2]} == {"r2"}
