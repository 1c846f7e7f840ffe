"""Which state each version should be in, from what was decided. Pure.

Version states follow from the decisions, so a controller that died between the two writes is
made good by its successor.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.rollout.ledger import Entry, Ledger
from shared.registry.rollouts import DecisionKind
from shared.registry.versions import Lifecycle, Registry, Version

RESTING = (Lifecycle.stable, Lifecycle.canary, Lifecycle.shadow)
"""States that only a present decision upholds."""


@dataclass(frozen=True, slots=True)
class Change:
    """A version whose state is not what was decided."""

    version: str
    model: str
    state: Lifecycle
    rollout: str
    reason: str


def changes(ledger: Ledger, registry: Registry, model: str) -> list[Change]:
    """What has to be written for a model, in this order: it is never without a stable version."""
    found = list(_changes(ledger, registry, model))
    return sorted(found, key=lambda change: change.state is not Lifecycle.stable)


def _changes(ledger: Ledger, registry: Registry, model: str) -> Iterator[Change]:
    routing = ledger.routing.get(model)
    if routing is None:
        return
    unfinished = ledger.unfinished_of(model)
    for version in registry.versions(model):
        name = version.record.version
        entry = _last_of(ledger, model, name)
        rollout = entry.state.rollout_id if entry else ""
        reason = entry.last.reason if entry else ""
        if name == routing.stable:
            wanted = Lifecycle.stable
        elif unfinished is not None and name == unfinished.state.candidate:
            wanted = Lifecycle.canary
        elif version.lifecycle is Lifecycle.stable:
            wanted, reason = Lifecycle.retired, f"{routing.stable} is stable now"
        elif version.lifecycle in RESTING:
            wanted = _after_failure(entry)
        else:
            continue
        if wanted is not version.lifecycle:
            yield Change(name, model, wanted, rollout, reason[:2000])


def waiting(ledger: Ledger, registry: Registry, model: str) -> Version | None:
    """The first released version that was registered and never had a rollout, or None."""
    routing = ledger.routing.get(model)
    for version in registry.versions(model):
        if version.lifecycle is not Lifecycle.registered or not version.record.gate.released:
            continue
        name = version.record.version
        if routing is not None and name == routing.stable:
            continue
        if _last_of(ledger, model, name) is None:
            return version
    return None


def _last_of(ledger: Ledger, model: str, version: str) -> Entry | None:
    return next(
        (one for one in reversed(ledger.entries(model)) if one.state.candidate == version), None
    )


def _after_failure(entry: Entry | None) -> Lifecycle:
    """Rejected; but a version that served before and was only called off stays deployable."""
    called_off = (DecisionKind.abort, DecisionKind.supersede)
    if (
        entry is not None
        and entry.state.came_from is Lifecycle.retired
        and entry.last.kind in called_off
    ):
        return Lifecycle.retired
    return Lifecycle.rejected
