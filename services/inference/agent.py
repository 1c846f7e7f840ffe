"""Adapter agent: the reconcile loop that keeps this replica's adapters as the registry wants."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Protocol

import structlog

from services.inference.acceptances import Acceptance, Acceptances
from services.inference.adapter_cache import AdapterCache
from services.inference.base_files import BaseFiles
from services.inference.engine import EngineClient, ServedModels
from services.inference.errors import (
    EngineRefused,
    EngineUnavailable,
    NotAcceptable,
    UnknownAdapter,
)
from services.inference.fingerprints import FingerprintFault, too_close
from services.inference.launcher import EngineState
from services.inference.metrics import InferenceMetrics
from services.inference.reconcile import (
    Action,
    ActionKind,
    AdapterLimits,
    AdapterState,
    EngineAdapters,
    Slot,
    next_action,
    wanted_versions,
)
from services.inference.slots import RETRY_FIRST_S, RETRY_MAX_S, AdapterSlots
from services.inference.verification import AdapterVerifier
from shared.backoff import Backoff
from shared.clock import Clock
from shared.contracts.events.base import Identifier
from shared.contracts.events.versions import Lifecycle, SettingsRecord, VersionRecord
from shared.observability.events import Unavailable
from shared.registry.adapters import AdapterError, AdapterUnavailable
from shared.registry.versions import Registry, Version

log = structlog.get_logger(__name__)

POLL_S = 1.0
MAX_LISTED = 8
"""Names of models that a refusal lists."""


class EngineControl(Protocol):
    """The launcher, or the watcher of an external engine."""

    state: EngineState

    def restart(self, reason: str) -> None:
        """Have the engine started again."""
        ...


class Agent:
    """Reconciles this replica's adapters with the registry.

    Nothing serves here before `ready`, yet vLLM answers under an adapter's name as soon as it
    is loaded: routers send nothing to a version before rollout has seen it `ready` here.
    """

    def __init__(
        self,
        *,
        engine: EngineControl,
        client: EngineClient,
        registry: Registry,
        models: tuple[str, ...],
        limits: AdapterLimits,
        base_files: BaseFiles,
        cache: AdapterCache,
        verifier: AdapterVerifier,
        acceptances: Acceptances,
        clock: Clock,
        metrics: InferenceMetrics,
        wake: asyncio.Event,
    ) -> None:
        """Whoever sets `wake` has the agent look again at once."""
        self._engine = engine
        self._client = client
        self._registry = registry
        self._models = models
        self._limits = limits
        self._base_files = base_files
        self._cache = cache
        self._verifier = verifier
        self._acceptances = acceptances
        self._clock = clock
        self._metrics = metrics
        self._slots = AdapterSlots(clock, metrics)
        self._wanted: tuple[Version, ...] = ()
        self._served = ServedModels()
        self._base_key = ""
        self._generation = -1
        self._settled = False
        self._wake = wake
        self._changed = asyncio.Condition()
        self._beat = clock.monotonic()

    @property
    def base(self) -> str:
        """The base model's name at the engine; empty before the engine was seen."""
        return self._served.base

    async def base_other_than(self, key: str) -> str:
        """Wait for another base than the one with this key; returns its key.

        A key is of the base's names and files: agents with the same one find the same versions
        `elsewhere`. It is empty until the base is known, which takes a version to be served.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._base_key != key)
            return self._base_key

    def idle_s(self) -> float:
        """Seconds since the agent last finished an action or found nothing to do."""
        return self._clock.monotonic() - self._beat

    def _moved(self) -> None:
        self._beat = self._clock.monotonic()

    def versions(self) -> tuple[Slot, ...]:
        """All versions this replica has to do with, wanted ones first; see `_slot`."""
        slots = [self._slot(version.record) for version in self._wanted]
        names = [slot.version for slot in slots]
        slots += [slot for name, slot in sorted(self._slots.items()) if name not in names]
        if self._engine.state.ready and self._generation == self._engine.state.generation:
            return tuple(slots)
        return tuple(Slot(slot.version, reason="waiting for the engine") for slot in slots)

    def _slot(self, record: VersionRecord | SettingsRecord) -> Slot:
        """A version's slot. One of settings has that of the adapter it serves.

        Without an adapter there is nothing to load and no fingerprint to compare: it is ready
        where the engine lists the base by the name that the version asks for.
        """
        if isinstance(record, VersionRecord):
            return self._slots.of(record.version)
        if record.adapter_of:
            slot = self._slots.of(record.adapter_of)
            reason = f"adapter of {record.adapter_of}: {slot.reason}" if slot.reason else ""
            return replace(slot, version=record.version, reason=reason)
        if record.base in self._served.bases:
            if wrong := self._base_files.known_refusal(record.base_sha256):
                return Slot(record.version, AdapterState.elsewhere, reason=wrong)
            return Slot(record.version, AdapterState.ready, verified=True)
        listed = ", ".join(self._served.bases[:MAX_LISTED]) or "no model"
        return Slot(
            record.version,
            AdapterState.elsewhere,
            reason=f"base: the engine lists {listed}, and not {record.base}",
        )

    def ready(self, version: str) -> bool:
        """Whether the version may serve on this replica."""
        return any(
            slot.version == version and slot.state is AdapterState.ready for slot in self.versions()
        )

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        """Wait until the version may serve here; False where it took longer."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.ready(version))
        except TimeoutError:
            return False
        return True

    def is_elsewhere(self, version: str) -> bool:
        """Whether a version is of another base than the engine's, so that others serve it."""
        known = self._registry.get(version)
        if known is None or self._generation < 0:
            return False
        elsewhere = self._slot(known.record).state is AdapterState.elsewhere
        return elsewhere or not self._is_of_this_base(known.record)

    def unready(self) -> str | None:
        """Why this replica should get no traffic, or None.

        After each start of the engine every wanted version must have been dealt with once, and
        one stable version must be ready where there are any. A version that cannot be served,
        a model's stable one too, takes no traffic away from the other models. Where all stable
        ones are of another base than the engine's, one of any version must be ready: a candidate
        of this base, or the way back from it.
        """
        state = self._engine.state
        if not state.ready:
            return f"the engine is not ready: {state.reason}"
        if self._generation != state.generation or not self._settled:
            return "adapters are being loaded after a start of the engine"
        slots = {slot.version: slot for slot in self.versions()}
        stable = [
            slots[version.record.version]
            for version in self._wanted
            if version.lifecycle is Lifecycle.stable
        ]
        ours = [slot for slot in stable if slot.state is not AdapterState.elsewhere]
        needed = ours or (slots.values() if stable else [])
        if not needed or any(slot.state is AdapterState.ready for slot in needed):
            return None
        if not ours:
            return "no version of the engine's base is ready; see /v1/adapters"
        return f"not ready: {', '.join(slot.version for slot in ours)}; see /v1/adapters"

    def acceptance(
        self, version: str, actor: Identifier, reason: str, *, on_behalf_of: str = ""
    ) -> Acceptance:
        """What a person's acceptance of a version refused as too close to another would be.

        `actor` is who was authenticated, `on_behalf_of` whom the actor names.

        Raises:
            UnknownAdapter: no such version is wanted here.
            NotAcceptable: it was not refused, or for a fault that cannot be overruled.

        """
        slot = self._slots.get(version)
        if slot is None or version not in {record.version for record in self._adapters()}:
            raise UnknownAdapter(f"version: {version!r} is not wanted here; see /v1/adapters")
        if slot.fault != FingerprintFault.too_close:
            raise NotAcceptable(
                f"version: {version!r} is {slot.state}"
                + (f" ({slot.reason})" if slot.reason else "")
                + "; only a refusal for being too close to another can be overruled"
            )
        record = self._record(version)
        return Acceptance(
            version=version,
            sha256=record.adapter_sha256,
            neighbours=tuple(too_close(slot.distances, self._verifier.tolerance(record))),
            actor=actor,
            on_behalf_of=on_behalf_of,
            reason=reason,
            at=self._clock.now(),
        )

    def accept(self, acceptance: Acceptance) -> None:
        """Let the version serve that was accepted.

        Raises:
            AcceptanceNotKept: the disk refused the acceptance.

        """
        self._acceptances.add(acceptance)
        log.warning(
            "adapter.accepted",
            version=acceptance.version,
            actor=acceptance.actor,
            reason=acceptance.reason,
            neighbours=acceptance.neighbours,
        )
        slot = self._slots.get(acceptance.version)
        # It may have come up meanwhile by another acceptance, and would be taken from its users.
        if slot is not None and slot.fault == FingerprintFault.too_close:
            self._slots.reset(acceptance.version)
            self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile until `stop` is set. A failure in a round does not end the loop.

        After an unexpected error the next round waits `RETRY_FIRST_S`, doubled each time.
        """
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while not stop.is_set():
            self._wake.clear()
            rest_s = POLL_S
            try:
                while not stop.is_set() and await self.step():
                    self._moved()
                backoff.reset()
            except EngineUnavailable as error:
                log.warning(Unavailable.engine, during="reconcile", error=str(error))
            except EngineRefused as error:
                log.warning("agent.engine_refused", error=str(error))
            except Exception:
                rest_s = backoff.next_s()
                log.exception("agent.round_failed", retry_in_s=rest_s)
            self._moved()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._wake.wait()

    async def step(self) -> bool:
        """Observe and take one action; False where there is none to take.

        Raises:
            EngineUnavailable, EngineRefused: the engine could not be looked at.

        """
        self._wanted = wanted_versions(
            self._registry.versions(),
            self._models,
            self._limits.max_adapters,
            self._is_of_this_base,
        )
        state = self._engine.state
        if not state.ready:
            await self._notify()
            return False
        if state.generation != self._generation:
            # What was true of the engine before is true no more.
            self._slots.clear()
            self._verifier.forget()
            self._settled = False
            self._generation = state.generation
        self._served = await self._client.models()
        if self._wanted:
            files = await self._base_files.read(self._moved)
            self._base_key = "\0".join((files.sha256, *sorted(self._served.bases)))
        names, adapters = self._served.adapters, self._adapters()
        ours = [one for one in adapters if self._is_of_this_base(one)]
        if ours:
            await self._verifier.learn_base(self._served.base, ours)
        loaded = EngineAdapters(names, await self._busy(names))
        wanted = [record.version for record in adapters]
        known = {version.record.version for version in self._registry.versions()}
        self._slots.drop_lost(names)
        now = self._clock.monotonic()
        action = next_action(wanted, self._slots, loaded, known, now, self._limits)
        if action is not None:
            await self._do(action, names)
        self._settled = self._settled or all(self._slots.of(name).settled for name in wanted)
        await self._notify()
        return action is not None

    def _is_of_this_base(self, record: VersionRecord | SettingsRecord) -> bool:
        """Whether it may serve on the base that is here, as far as that is known."""
        return not self._base_files.known_refusal(record.base_sha256)

    async def _busy(self, names: frozenset[str]) -> frozenset[str]:
        """Adapters with requests under way; asked only while one is draining."""
        draining = [name for name in names if self._slots.of(name).state is AdapterState.draining]
        if not draining:
            return frozenset()
        try:
            return (await self._client.load_figures()).busy
        except (EngineUnavailable, EngineRefused):
            return frozenset(draining)

    async def _do(self, action: Action, loaded: frozenset[str]) -> None:
        version = action.version
        slot = self._slots.of(version)
        match action.kind:
            case ActionKind.load:
                await self._load(slot)
            case ActionKind.verify:
                await self._verify(slot, loaded)
            case ActionKind.keep:
                self._slots.keep(slot)
            case ActionKind.drain:
                self._slots.drain(slot)
            case ActionKind.unload:
                await self._client.unload(version)
                log.info("adapter.unloaded", version=version, state=slot.state)
                if slot.state is AdapterState.draining:
                    self._slots.forget(version)
            case ActionKind.forget:
                self._slots.forget(version)

    async def _load(self, slot: Slot) -> None:
        record = self._record(slot.version)
        began = self._clock.monotonic()
        self._slots.loading(slot)
        await self._notify()
        if wrong := await self._base_files.refusal(record, self._moved):
            self._slots.elsewhere(slot, wrong)
            return
        try:
            folder = await self._cache.fetch(record)
            await self._client.load(slot.version, str(folder))
        except (AdapterUnavailable, EngineUnavailable, OSError) as error:
            self._slots.retry(slot, AdapterState.wanted, "unavailable", str(error))
        except AdapterError as error:
            self._slots.retry(slot, AdapterState.refused, "checksum", str(error))
        except EngineRefused as error:
            self._slots.retry(slot, AdapterState.refused, "engine", str(error))
        else:
            self._metrics.load_s.observe(self._clock.monotonic() - began)
            self._slots.loaded(slot)
            await self._cache.prune(self._needed())

    async def _verify(self, slot: Slot, loaded: frozenset[str]) -> None:
        record = self._record(slot.version)
        began = self._clock.monotonic()
        self._slots.verifying(slot)
        await self._notify()
        try:
            check, answers = await self._verifier.verify(record, loaded)
        except EngineUnavailable as error:
            self._slots.retry(slot, AdapterState.verifying, "unavailable", str(error))
            return
        except (EngineRefused, ValueError) as error:
            self._slots.retry(slot, AdapterState.refused, "engine", str(error))
            return
        self._metrics.verify_s.observe(self._clock.monotonic() - began)
        if check.fault is not FingerprintFault.none:
            self._slots.refuse(slot.version, check)
            return
        self._slots.verified(slot.version, check)
        # Loading one adapter must not change another one's answers.
        neighbours = [
            self._record(name)
            for name in answers
            if self._slots.of(name).verified and name != slot.version
        ]
        async for name, changed in self._verifier.changed(neighbours, answers):
            self._slots.refuse(name, changed)
            self._engine.restart(f"{name} changed its answers as {slot.version} was loaded")

    async def _notify(self) -> None:
        """Publish the slots' counts and wake whoever waits for a version."""
        counts = dict.fromkeys(AdapterState, 0)
        for slot in self.versions():
            counts[slot.state] += 1
        for state, count in counts.items():
            self._metrics.adapters.labels(state).set(count)
        async with self._changed:
            self._changed.notify_all()

    def _needed(self) -> frozenset[str]:
        """Checksums of the folders that the engine may read again at any time."""
        names = {record.version for record in self._adapters()} | set(self._slots)
        return frozenset(self._record(name).adapter_sha256 for name in names)

    def _adapters(self) -> list[VersionRecord]:
        """The records of the adapters that the wanted versions serve, in their order."""
        served = (self._registry.adapter(version.record.version) for version in self._wanted)
        return list({record.version: record for record in served if record is not None}.values())

    def _record(self, version: str) -> VersionRecord:
        record = self._registry.adapter(version)
        assert record is not None
        return record
