"""How far a dataset's answers are from the version that is trained."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.training.policy import accounting, lineage
from shared.contracts.events.base import utc
from shared.contracts.events.versions import record_key
from shared.registry.versions import Registry
from tests.unit.training.builders import NOW, record

CHAIN = ("m-v1.2", "m-v1.1", "m-v1.0")


def row(chosen: str, rejected: str, days: float = 0) -> dict[str, object]:
    return {
        "meta": {
            "chosen_version": chosen,
            "rejected_version": rejected,
            "created_at": utc(NOW - timedelta(days=days)),
        }
    }


def test_share_lag_and_age() -> None:
    rows = [
        row("m-v1.2", "m-v1.2", 1),
        row("m-v1.2", "m-v1.0", 3),
        row("m-v1.1", "m-v1.1", 5),
        row("other", "m-v1.2", 7),
    ]
    assert accounting(rows, CHAIN, NOW) == pytest.approx(
        {"data_on_policy_share": 0.25, "data_policy_lag": 1.0, "data_age_days": 4.0}
    )


def test_what_nobody_knows_has_no_figure() -> None:
    assert accounting([{"meta": {}}, {}], CHAIN, NOW) == {}
    assert accounting([], (), NOW) == {}
    assert accounting([row("", "")], CHAIN, NOW) == {"data_age_days": 0.0}


def test_a_lineage_ends_and_never_turns_in_a_circle() -> None:
    registry = Registry()
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        registry.apply(record_key(name), record(name, parent=parent).to_json())
    assert lineage("a", registry) == ("a", "b", "c")
    assert lineage("", registry) == ()
    assert lineage("gone", registry) == ("gone",)
