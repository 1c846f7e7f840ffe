"""When each version got traffic, and as what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from shared.registry.deployments import MAX_DEPLOYMENTS, Deployments
from shared.registry.routing import RoutingState
from shared.testing.clock import START


def routing(minute: int, stable: str, candidate: str = "", weight: int = 0) -> RoutingState:
    fields: dict[str, Any] = {"model": "m", "token": 0, "seq": minute, "rollout": "r"}
    at = START + timedelta(minutes=minute)
    return RoutingState(stable=stable, candidate=candidate, weight=weight, at=at, **fields)


def test_a_canary_that_is_promoted_has_both_stretches_and_ends_its_predecessors() -> None:
    deployments = Deployments()
    for state in (
        routing(0, "v1"),
        routing(1, "v1", "v2"),
        routing(2, "v1", "v2", 500),
        routing(3, "v1", "v2", 5000),
        routing(4, "v2"),
    ):
        deployments.apply(state)
    times = [
        (one.role, one.since - START, one.until and one.until - START)
        for one in deployments.of("v2")
    ]
    minute = timedelta(minutes=1)
    assert times == [("canary", 2 * minute, 4 * minute), ("stable", 4 * minute, None)]
    (first,) = deployments.of("v1")
    assert (first.since, first.until) == (START, START + 4 * minute)


def test_a_candidate_without_weight_was_never_deployed() -> None:
    deployments = Deployments()
    deployments.apply(routing(0, "v1", "v2"))
    assert deployments.of("v2") == ()


def test_what_is_kept_of_a_version_is_bounded() -> None:
    deployments = Deployments()
    for minute in range(3 * MAX_DEPLOYMENTS):
        deployments.apply(routing(minute, "v1", "v2", minute % 2))
    assert len(deployments.of("v2")) == MAX_DEPLOYMENTS
    assert deployments.of("v2")[-1].since == START + timedelta(minutes=3 * MAX_DEPLOYMENTS - 1)


def test_the_reference_of_a_holdout_is_deployed_until_the_holdout_ends() -> None:
    deployments = Deployments()
    held = {"holdout": 200, "reference": "v1"}
    for state in (
        routing(0, "v1"),
        routing(1, "v1").model_copy(update=held),
        routing(2, "v2").model_copy(update=held),
        routing(3, "v2"),
    ):
        deployments.apply(state)
    minutes = [
        (
            one.role,
            (one.since - START).seconds // 60,
            one.until and (one.until - START).seconds // 60,
        )
        for one in deployments.of("v1")
    ]
    assert minutes == [("stable", 0, 2), ("holdout", 1, 3)]


def test_a_stretch_that_was_pushed_out_ends_without_harm() -> None:
    deployments = Deployments()
    held = {"holdout": 200, "reference": "v1"}
    for minute in range(2 * MAX_DEPLOYMENTS + 2):
        state = routing(minute, "v2", "v1", minute % 2).model_copy(update=held)
        deployments.apply(state)
    deployments.apply(routing(minute + 1, "v2"))
    assert all(one.until is not None for one in deployments.of("v1"))
