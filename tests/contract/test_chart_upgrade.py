"""The chart after that of the release before: what a cluster would refuse to change is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.chart import ChartRefused, render
from tests.support.chart_sets import SETS, objects_of
from tests.support.upgrade.chart import previous_chart

STATEFUL = {"replicas", "template", "ordinals", "updateStrategy", "minReadySeconds"} | {
    "persistentVolumeClaimRetentionPolicy",
    "revisionHistoryLimit",
}
"""What may change in a StatefulSet's spec; the rest a server refuses."""
DISKS = {"volumeClaimTemplates"}
"""Refused, too; an upgrade leaves what the cluster has (test_chart_sets.py)."""
NEW_VALUES = {
    "autoscaling-by-lag-and-scram",
    "detector",
    "files-of-one-service",
    "generated-keys-and-accounts",
    "informative-pairs",
    "next-base",
    "strimzi-production",
}
"""Sets with values that the release before does not know."""


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return previous_chart(tmp_path_factory.mktemp("previous"))


def fixed(item: dict[str, Any]) -> dict[str, Any]:
    """The part of an object's spec that a server lets nobody change."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "StatefulSet":
            return {name: part for name, part in spec.items() if name not in STATEFUL | DISKS}
        case "Deployment":
            return {"selector": spec["selector"]}
        case "Job":
            return spec
        case "Service":
            return {"headless": spec.get("clusterIP") == "None"}
        case _:
            return {}


@pytest.mark.parametrize("name", sorted(SETS.keys() - NEW_VALUES))
def test_an_upgrade_changes_nothing_that_a_server_refuses(
    name: str, previous: Path, tmp_path: Path
) -> None:
    profiles, values = SETS[name]
    before = {
        (item["kind"], item["metadata"]["name"]): item
        for item in render(values, tmp_path, chart=previous, profiles=profiles)
    }
    for item in objects_of(name, tmp_path):
        if there := before.get((item["kind"], item["metadata"]["name"])):
            assert item["apiVersion"] == there["apiVersion"]
            assert fixed(item) == fixed(there), (item["kind"], item["metadata"]["name"])


@pytest.mark.parametrize("name", sorted(SETS.keys() - NEW_VALUES))
def test_an_upgrade_leaves_no_volume_behind(name: str, previous: Path, tmp_path: Path) -> None:
    """A StatefulSet of another name or kind would begin with an empty volume."""
    profiles, values = SETS[name]
    before, after = (
        {item["metadata"]["name"] for item in objects if item["kind"] == "StatefulSet"}
        for objects in (
            render(values, tmp_path, chart=previous, profiles=profiles),
            objects_of(name, tmp_path),
        )
    )
    assert before <= after


@pytest.mark.parametrize("name", sorted(NEW_VALUES))
def test_a_set_left_out_is_one_that_the_release_before_refuses(
    name: str, previous: Path, tmp_path: Path
) -> None:
    profiles, values = SETS[name]
    with pytest.raises(ChartRefused):
        render(values, tmp_path, chart=previous, profiles=profiles)
