"""Adapter slots: the state of each adapter since the engine's last start, and its transitions.

Each transition is logged and counted here, so that log and metrics name it alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import structlog

from services.inference.fingerprints import FingerprintCheck
from services.inference.metrics import InferenceMetrics
from services.inference.reconcile import NEVER, AdapterState, Slot
from shared.backoff import pause_s
from shared.clock import Clock

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 2.0
RETRY_MAX_S = 60.0


class AdapterSlots(Mapping[str, Slot]):
    """Slots by version; a version without one is `wanted` and untried."""

    def __init__(self, clock: Clock, metrics: InferenceMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._slots: dict[str, Slot] = {}

    def __getitem__(self, version: str) -> Slot:
        return self._slots[version]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def of(self, version: str) -> Slot:
        """The version's slot, a fresh one where it has none."""
        return self._slots.get(version, Slot(version))

    def clear(self) -> None:
        """Drop all slots: the engine restarted."""
        self._slots.clear()

    def reset(self, version: str) -> None:
        """Begin again with a version."""
        self._slots[version] = Slot(version)

    def forget(self, version: str) -> None:
        """Drop a version's slot."""
        del self._slots[version]

    def drop_lost(self, loaded: Collection[str]) -> None:
        """Reset ready versions that the engine no longer has."""
        for version, slot in self._slots.items():
            if slot.state is AdapterState.ready and version not in loaded:
                log.error("adapter.lost", version=version)
                self._slots[version] = Slot(version)

    def loading(self, slot: Slot) -> None:
        """Its folder is being fetched and loaded."""
        self._put(replace(slot, state=AdapterState.loading, verified=False, reason=""))

    def loaded(self, slot: Slot) -> None:
        """The engine has loaded it; its fingerprint is not measured yet."""
        self._put(replace(slot, state=AdapterState.verifying, reason="", fault=""))

    def verifying(self, slot: Slot) -> None:
        """Its fingerprint is being measured."""
        self._put(replace(slot, state=AdapterState.verifying))

    def keep(self, slot: Slot) -> None:
        """A draining version is wanted again."""
        self._put(replace(slot, state=AdapterState.ready, draining_since=0.0))

    def drain(self, slot: Slot) -> None:
        """A version is no longer wanted; its running requests may end."""
        now = self._clock.monotonic()
        self._put(replace(slot, state=AdapterState.draining, draining_since=now))

    def verified(self, version: str, check: FingerprintCheck) -> None:
        """Its fingerprint is right: it may serve."""
        self._put(
            Slot(
                version,
                state=AdapterState.ready,
                verified=True,
                difference=check.difference,
                distances=check.distances,
            )
        )
        log.info(
            "adapter.ready",
            version=version,
            difference=check.difference,
            distances=dict(check.distances),
        )

    def refuse(self, version: str, check: FingerprintCheck) -> None:
        """Its fingerprint is wrong: it is refused until the engine starts anew or it is accepted."""
        self._metrics.refusals.labels(check.fault).inc()
        self._put(
            Slot(
                version,
                state=AdapterState.refused,
                retry_at=NEVER,
                fault=check.fault,
                reason=check.reason,
                difference=check.difference,
                distances=check.distances,
            )
        )
        log.error(
            "adapter.refused",
            version=version,
            fault=check.fault,
            reason=check.reason,
            difference=check.difference,
            distances=dict(check.distances),
        )

    def elsewhere(self, slot: Slot, reason: str) -> None:
        """It is of another base, until the engine starts anew."""
        self._put(replace(slot, state=AdapterState.elsewhere, retry_at=NEVER, reason=reason))
        log.info("adapter.elsewhere", version=slot.version, reason=reason)

    def retry(self, slot: Slot, state: AdapterState, fault: str, reason: str) -> None:
        """Try again later; twice as late each time, up to a limit."""
        wait_s = pause_s(slot.attempts, RETRY_FIRST_S, RETRY_MAX_S)
        if state is AdapterState.refused:
            self._metrics.refusals.labels(fault).inc()
        self._put(
            replace(
                slot,
                state=state,
                verified=False,
                attempts=slot.attempts + 1,
                retry_at=self._clock.monotonic() + wait_s,
                fault=fault,
                reason=f"{reason}; next try in {wait_s:g} s",
            )
        )
        log.warning(
            "adapter.failed", version=slot.version, fault=fault, reason=reason, retry_in_s=wait_s
        )

    def _put(self, slot: Slot) -> None:
        self._slots[slot.version] = slot
