"""Differences of two versions' records, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

UNSHOWN = frozenset(
    {"version", "fingerprint", "adapter_sha256", "adapter_uri", "job_id", "dataset.card"}
)
"""Paths of fields that differ between any two versions and say nothing, or too much."""


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields that differ, by their path, with both values; None where one has none."""
    old, new = _flat(first), _flat(second)
    return [
        {"field": name, "first": old.get(name), "second": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Values by their path through objects; a list is one value, but a gate's checks are named."""
    found: dict[str, Any] = {}
    for name, one in value.items():
        place = f"{path}{name}"
        if place in UNSHOWN:
            continue
        if name == "checks":
            one = {check["name"]: check.get("value") for check in one}  # noqa: PLW2901
        if isinstance(one, Mapping):
            found |= _flat(cast("Mapping[str, Any]", one), f"{place}.")
        else:
            found[place] = one
    return found
