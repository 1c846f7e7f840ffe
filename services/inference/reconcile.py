"""Reconciliation: which adapters belong in the engine, and the next action to get there. Pure.

The engine's own list is the truth about what is loaded: adapters are gone after a restart, and
ours may not be the hand that loaded them. One action at a time, so that each is chosen with the
outcome of the one before in view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from shared.contracts.events.versions import Lifecycle, SettingsRecord, VersionRecord
from shared.registry.versions import Version

NEVER = math.inf
"""`retry_at` of a refusal that stands until the engine restarts or a person accepts it."""

_SERVING = (Lifecycle.stable, Lifecycle.canary, Lifecycle.shadow)


class AdapterState(StrEnum):
    """State of an adapter in the engine."""

    wanted = "wanted"
    loading = "loading"
    verifying = "verifying"
    ready = "ready"
    draining = "draining"
    refused = "refused"
    elsewhere = "elsewhere"
    """It is of another base than the engine serves: engines of its own serve it."""


_SETTLED = (AdapterState.ready, AdapterState.refused, AdapterState.elsewhere)


@dataclass(frozen=True)
class Slot:
    """State of one adapter since the engine's last start. Times are monotonic."""

    version: str
    state: AdapterState = AdapterState.wanted
    verified: bool = False
    attempts: int = 0
    retry_at: float = 0.0
    draining_since: float = 0.0
    fault: str = ""
    reason: str = ""
    difference: float | None = None
    distances: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def settled(self) -> bool:
        """True once nothing more is tried for now: it serves, never will here, or failed before."""
        return self.state in _SETTLED or self.attempts > 0


class ActionKind(StrEnum):
    """Kind of an action on an adapter."""

    load = "load"
    verify = "verify"
    keep = "keep"
    drain = "drain"
    unload = "unload"
    forget = "forget"


@dataclass(frozen=True)
class Action:
    """The next thing to do."""

    kind: ActionKind
    version: str


@dataclass(frozen=True)
class AdapterLimits:
    """Bounds of what is loaded and how long a drain takes, in seconds."""

    max_adapters: int
    drain_grace_s: float
    drain_limit_s: float


@dataclass(frozen=True)
class EngineAdapters:
    """Adapters loaded in the engine, and those with requests running or waiting."""

    names: frozenset[str]
    busy: frozenset[str]


def wanted_versions(
    versions: Iterable[Version],
    models: Collection[str],
    limit: int,
    of_this_base: Callable[[VersionRecord | SettingsRecord], bool] = lambda _: True,
) -> tuple[Version, ...]:
    """Released versions that belong in an engine, the most important first.

    Stable, canary and shadow versions, then references of holdouts, then the registered ones of a model
    without a stable version, as one becomes stable only after an engine has verified it, then each
    model's most recently retired one (the way back) but for those retired by hand, then the other
    registered ones of settings, which are evaluated before their rollout. Versions that no gate
    released are never among them.
    `limit` bounds their adapters; a version that serves the base alone takes no place, nor does one
    that is not `of_this_base`, whose adapter is never loaded.
    """
    ours = [
        version
        for version in versions
        if version.record.gate.released and (not models or version.record.model in models)
    ]
    serving = [
        version for lifecycle in _SERVING for version in ours if version.lifecycle is lifecycle
    ]
    references = [version for version in ours if version.state and version.state.holdout]
    served = {version.record.model for version in ours if version.lifecycle is Lifecycle.stable}
    first = [
        version
        for version in ours
        if version.lifecycle is Lifecycle.registered and version.record.model not in served
    ]
    retired: dict[str, Version] = {}
    for version in ours:
        if version.is_way_back:
            last = retired.get(version.record.model)
            if last is None or _since(version) >= _since(last):
                retired[version.record.model] = version
    settings = [
        version
        for version in ours
        if version.lifecycle is Lifecycle.registered and isinstance(version.record, SettingsRecord)
    ]
    found = (*serving, *references, *first, *retired.values(), *settings)
    once = {one.record.version: one for one in found}.values()
    return tuple(_within(once, limit, of_this_base))


def _within(
    versions: Iterable[Version],
    limit: int,
    of_this_base: Callable[[VersionRecord | SettingsRecord], bool],
) -> Iterator[Version]:
    adapters: set[str] = set()
    for version in versions:
        record = version.record
        name = record.adapter_of if isinstance(record, SettingsRecord) else record.version
        if not name or name in adapters or not of_this_base(record):
            yield version
        elif len(adapters) < limit:
            adapters.add(name)
            yield version


def next_action(
    wanted: Sequence[str],
    slots: Mapping[str, Slot],
    loaded: EngineAdapters,
    known: Collection[str],
    now: float,
    limits: AdapterLimits,
) -> Action | None:
    """The next action, or None where the agent can only wait.

    Adapters unknown to the registry are foreign and stay loaded; they do take
    a place in the engine.

    Args:
        wanted: Adapters that belong here, the most important first.
        slots: What is known of each version.
        loaded: What the engine has.
        known: All versions of the registry.
        now: Monotonic seconds.
        limits: Bounds.

    """
    ours = [name for name in sorted(loaded.names) if name in known]
    for action in _leaving(ours, wanted, slots, loaded.busy, now, limits):
        return action
    for name in sorted(slots):
        if name not in wanted and name not in loaded.names:
            return Action(ActionKind.forget, name)
    for name in wanted:
        slot = slots.get(name, Slot(name))
        if name in loaded.names:
            if slot.state is AdapterState.draining and slot.verified:
                return Action(ActionKind.keep, name)
            if slot.state is not AdapterState.ready and slot.retry_at <= now:
                return Action(ActionKind.verify, name)
        elif slot.retry_at <= now and len(loaded.names) < limits.max_adapters:
            return Action(ActionKind.load, name)
    return None


def _leaving(
    ours: Sequence[str],
    wanted: Sequence[str],
    slots: Mapping[str, Slot],
    busy: Collection[str],
    now: float,
    limits: AdapterLimits,
) -> Iterator[Action]:
    for name in ours:
        slot = slots.get(name, Slot(name))
        if slot.state is AdapterState.refused:
            yield Action(ActionKind.unload, name)
        elif name not in wanted:
            if slot.state is not AdapterState.draining:
                yield Action(ActionKind.drain, name)
                continue
            waited = now - slot.draining_since
            idle = waited >= limits.drain_grace_s and name not in busy
            if idle or waited >= max(limits.drain_grace_s, limits.drain_limit_s):
                yield Action(ActionKind.unload, name)


def _since(version: Version) -> datetime:
    return version.state.at if version.state else datetime.min.replace(tzinfo=UTC)
