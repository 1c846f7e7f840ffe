"""The adapter agent: does what `reconcile` decides, and knows what may serve here."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from services.inference.acceptances import Acceptance, Acceptances
from services.inference.engine import EngineClient
from services.inference.errors import (
    EngineRefused,
    EngineUnavailable,
    NotAcceptable,
    UnknownAdapter,
)
from services.inference.fingerprints import (
    FingerprintCheck,
    FingerprintFault,
    check_fingerprint,
    too_close,
)
from services.inference.launcher import EngineState
from services.inference.metrics import Metrics
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
from shared.clock import Clock
from shared.contracts.events import Identifier
from shared.registry.adapters import (
    FINGERPRINT_TEXTS,
    AdapterError,
    AdapterUnavailable,
    fetch,
)
from shared.registry.versions import Fingerprint, Lifecycle, Registry, Version, VersionRecord

log = structlog.get_logger(__name__)

Tokens = tuple[tuple[int, ...], ...]
"""Texts as token ids."""

POLL_S = 1.0
FETCH_TIMEOUT_S = 300.0
RETRY_FIRST_S = 2.0
RETRY_MAX_S = 60.0
SPARE_FOLDERS = 4
"""Folders kept in the cache beside those of wanted versions."""


class EngineControl(Protocol):
    """The launcher, or the watcher of an external engine."""

    state: EngineState

    def restart(self, reason: str) -> None:
        """Have the engine started again."""
        ...


class Agent:
    """Holds this replica's adapters at what the registry wants.

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
        cache: Path,
        tolerance: Callable[[str], float],
        acceptances: Acceptances,
        clock: Clock,
        metrics: Metrics,
        wake: asyncio.Event,
    ) -> None:
        """`tolerance` gives the nats a fingerprint recorded in a dtype may differ here.

        Whoever sets `wake` has the agent look again at once.
        """
        self._engine = engine
        self._client = client
        self._registry = registry
        self._models = models
        self._limits = limits
        self._cache = cache
        self._tolerance = tolerance
        self._acceptances = acceptances
        self._clock = clock
        self._metrics = metrics
        self._slots: dict[str, Slot] = {}
        self._wanted: tuple[Version, ...] = ()
        self._base = ""
        self._base_answers: dict[Tokens, Fingerprint] | None = None
        self._generation = -1
        self._settled = False
        self._wake = wake
        self._changed = asyncio.Condition()
        self._beat = clock.monotonic()

    @property
    def base(self) -> str:
        """The base model's name at the engine; empty before the engine was seen."""
        return self._base

    def idle_s(self) -> float:
        """Seconds since the agent last finished an action or found nothing to do."""
        return self._clock.monotonic() - self._beat

    def adapters(self) -> tuple[Slot, ...]:
        """All adapters this replica has to do with, wanted ones first."""
        names = [version.record.version for version in self._wanted]
        slots = [self._slots.get(name, Slot(name)) for name in names]
        slots += [slot for name, slot in sorted(self._slots.items()) if name not in names]
        if self._engine.state.ready and self._generation == self._engine.state.generation:
            return tuple(slots)
        return tuple(Slot(slot.version, reason="waiting for the engine") for slot in slots)

    def ready(self, version: str) -> bool:
        """Whether the version may serve on this replica."""
        return any(
            slot.version == version and slot.state is AdapterState.ready for slot in self.adapters()
        )

    async def wait_ready(self, version: str, timeout_s: float) -> bool:
        """Wait until the version may serve here; False where it took longer."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self.ready(version))
        except TimeoutError:
            return False
        return True

    def unready(self) -> str | None:
        """Why this replica should get no traffic, or None.

        Stable versions must be ready, and after each start of the engine every wanted version
        must have been dealt with once. A later candidate that is refused here takes no traffic
        away from the stable version.
        """
        state = self._engine.state
        if not state.ready:
            return f"the engine is not ready: {state.reason}"
        if self._generation != state.generation or not self._settled:
            return "adapters are being loaded after a start of the engine"
        missing = [
            version.record.version
            for version in self._wanted
            if version.lifecycle is Lifecycle.stable and not self.ready(version.record.version)
        ]
        return f"not ready: {', '.join(missing)}; see /v1/adapters" if missing else None

    def accept(self, version: str, actor: Identifier, reason: str) -> Acceptance:
        """Take a version that was refused for being close to another; people decide that.

        Raises:
            UnknownAdapter: no such version is wanted here.
            NotAcceptable: it was not refused, or for what nobody may overrule.

        """
        known = {one.record.version: one for one in self._wanted}
        slot = self._slots.get(version)
        if version not in known or slot is None:
            raise UnknownAdapter(f"version: {version!r} is not wanted here; see /v1/adapters")
        if slot.fault != FingerprintFault.too_close:
            raise NotAcceptable(
                f"version: {version!r} is {slot.state}"
                + (f" ({slot.reason})" if slot.reason else "")
                + "; only a refusal for being too close to another can be overruled"
            )
        record = known[version].record
        acceptance = Acceptance(
            version=version,
            sha256=record.adapter_sha256,
            neighbours=tuple(too_close(slot.distances, self._tolerance(record.fingerprint.dtype))),
            actor=actor,
            reason=reason,
            at=self._clock.now(),
        )
        self._acceptances.add(acceptance)
        log.warning(
            "adapter.accepted",
            version=version,
            actor=actor,
            reason=reason,
            refusal=slot.reason,
            distances=dict(slot.distances),
        )
        self._slots[version] = Slot(version)
        self._wake.set()
        return acceptance

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile until `stop` is set. Nothing that fails in a round ends the loop.

        What nobody foresaw is tried again after `RETRY_FIRST_S`, then twice as late each time.
        """
        failures = 0
        while not stop.is_set():
            self._wake.clear()
            rest_s = POLL_S
            try:
                while not stop.is_set() and await self.step():
                    self._beat = self._clock.monotonic()
                failures = 0
            except (EngineUnavailable, EngineRefused) as error:
                log.warning("agent.engine_failed", error=str(error))
            except Exception:
                rest_s = backoff_s(failures)
                failures += 1
                log.exception("agent.round_failed", retry_in_s=rest_s)
            self._beat = self._clock.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._wake.wait()

    async def step(self) -> bool:
        """Look, and do one thing about it; False while there is nothing to do.

        Raises:
            EngineUnavailable, EngineRefused: the engine could not be looked at.

        """
        self._wanted = wanted_versions(
            self._registry.versions(), self._models, self._limits.max_adapters
        )
        state = self._engine.state
        if not state.ready:
            await self._tell()
            return False
        if state.generation != self._generation:
            # What was true of the engine before is true no more.
            self._slots.clear()
            self._settled = False
            self._base_answers = None
            self._generation = state.generation
        self._base, names = await self._client.models()
        if self._base_answers is None:
            self._base_answers = await self._learn_base()
        loaded = EngineAdapters(names, await self._busy(names))
        names_wanted = [version.record.version for version in self._wanted]
        known = {version.record.version for version in self._registry.versions()}
        for name, slot in self._slots.items():
            if slot.state is AdapterState.ready and name not in names:
                log.error("adapter.lost", version=name)
                self._slots[name] = Slot(name)
        action = next_action(
            names_wanted, self._slots, loaded, known, self._clock.monotonic(), self._limits
        )
        if action is not None:
            await self._do(action, names)
        self._settled = self._settled or all(
            self._slots.get(name, Slot(name)).settled for name in names_wanted
        )
        await self._tell()
        return action is not None

    async def _busy(self, names: frozenset[str]) -> frozenset[str]:
        """Adapters with requests under way; asked only while one is draining."""
        draining = [
            name
            for name in names
            if name in self._slots and self._slots[name].state is AdapterState.draining
        ]
        if not draining:
            return frozenset()
        try:
            return (await self._client.load_figures()).busy
        except (EngineUnavailable, EngineRefused):
            return frozenset(draining)

    async def _do(self, action: Action, loaded: frozenset[str]) -> None:
        version = action.version
        slot = self._slots.get(version, Slot(version))
        match action.kind:
            case ActionKind.load:
                await self._load(slot)
            case ActionKind.verify:
                await self._verify(slot, loaded)
            case ActionKind.keep:
                self._put(replace(slot, state=AdapterState.ready, draining_since=0.0))
            case ActionKind.drain:
                self._put(
                    replace(
                        slot,
                        state=AdapterState.draining,
                        draining_since=self._clock.monotonic(),
                    )
                )
            case ActionKind.unload:
                await self._client.unload(version)
                log.info("adapter.unloaded", version=version, state=slot.state)
                if slot.state is AdapterState.draining:
                    del self._slots[version]
            case ActionKind.forget:
                del self._slots[version]

    async def _load(self, slot: Slot) -> None:
        record = self._record(slot.version)
        began = self._clock.monotonic()
        self._put(replace(slot, state=AdapterState.loading, verified=False, reason=""))
        await self._tell()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                folder = await asyncio.to_thread(
                    fetch, record.adapter_uri, record.adapter_sha256, self._cache
                )
            await self._client.load(slot.version, str(folder.resolve()))
        except TimeoutError:
            reason = f"{record.adapter_uri}: not fetched within {FETCH_TIMEOUT_S:g} s"
            self._retry(slot, AdapterState.wanted, "unavailable", reason)
        except (AdapterUnavailable, EngineUnavailable, OSError) as error:
            self._retry(slot, AdapterState.wanted, "unavailable", str(error))
        except AdapterError as error:
            self._metrics.refusals.labels("checksum").inc()
            self._retry(slot, AdapterState.refused, "checksum", str(error))
        except EngineRefused as error:
            self._metrics.refusals.labels("engine").inc()
            self._retry(slot, AdapterState.refused, "engine", str(error))
        else:
            self._metrics.load_s.observe(self._clock.monotonic() - began)
            self._put(replace(slot, state=AdapterState.verifying, reason="", fault=""))
            await self._prune()

    async def _prune(self) -> None:
        """Keep the cache small; a folder that goes meanwhile is no reason to stop."""
        try:
            await asyncio.to_thread(_prune, self._cache, self._needed())
        except OSError as error:
            log.warning("cache.not_pruned", error=str(error))

    async def _verify(self, slot: Slot, loaded: frozenset[str]) -> None:
        record = self._record(slot.version)
        began = self._clock.monotonic()
        self._put(replace(slot, state=AdapterState.verifying))
        await self._tell()
        try:
            answered = await self._ask(slot.version, record.fingerprint)
            others = await self._others(record.fingerprint, record.parent, slot.version, loaded)
            check = check_fingerprint(
                record.fingerprint,
                answered,
                others,
                self._tolerance(record.fingerprint.dtype),
                accepted=self._acceptances.of(slot.version, record.adapter_sha256),
            )
        except EngineUnavailable as error:
            self._retry(slot, AdapterState.verifying, "unavailable", str(error))
            return
        except (EngineRefused, ValueError) as error:
            self._metrics.refusals.labels("engine").inc()
            self._retry(slot, AdapterState.refused, "engine", str(error))
            return
        self._metrics.verify_s.observe(self._clock.monotonic() - began)
        if check.fault is FingerprintFault.none:
            self._pass(slot, check)
            await self._check_neighbours(slot.version, others)
        else:
            self._refuse(slot, check)

    async def _learn_base(self) -> dict[Tokens, Fingerprint]:
        """What the base answers, asked once after each start, before there is other traffic.

        On CPU vLLM 0.32 gives base requests the adapter in the last slot where a batch has
        requests of adapters too (index -1 into the stacked weights), so later is too late.
        """
        texts = [await self._client.tokens(self._base, text) for text in FINGERPRINT_TEXTS]
        sets: set[Tokens] = {tuple(texts)}
        sets |= {_tokens(version.record.fingerprint) for version in self._wanted}
        answers: dict[Tokens, Fingerprint] = {}
        for tokens in sets:
            try:
                answers[tokens] = await self._client.fingerprint(self._base, tokens, "float32")
            except EngineRefused as error:
                log.warning("agent.base_refused", error=str(error))
        return answers

    async def _others(
        self, recorded: Fingerprint, parent: str, version: str, loaded: frozenset[str]
    ) -> dict[str, Fingerprint]:
        """What all that the version could be mistaken for answers to its tokens.

        A parent that is not loaded speaks through its record, where that has the same tokens.
        """
        assert self._base_answers is not None
        tokens = _tokens(recorded)
        if tokens not in self._base_answers:
            self._base_answers[tokens] = await self._ask(self._base, recorded)
        others = {self._base: self._base_answers[tokens]}
        for name in sorted(loaded - {version}):
            others[name] = await self._ask(name, recorded)
        if parent and parent not in others:
            known = self._registry.get(parent)
            if known is not None and _tokens(known.record.fingerprint) == tokens:
                others[parent] = known.record.fingerprint
        return others

    async def _check_neighbours(self, version: str, answers: Mapping[str, Fingerprint]) -> None:
        """See that loading one adapter changed no other one's answers."""
        for name, answered in answers.items():
            slot, known = self._slots.get(name), self._registry.get(name)
            if slot is None or known is None or not slot.verified:
                continue
            recorded = known.record.fingerprint
            same = _tokens(recorded) == _tokens(answered)
            own = answered if same else await self._ask(name, recorded)
            check = check_fingerprint(recorded, own, {}, self._tolerance(recorded.dtype))
            if check.fault is FingerprintFault.mismatch:
                self._refuse(slot, check)
                self._engine.restart(f"{name} changed its answers as {version} was loaded")

    async def _ask(self, model: str, recorded: Fingerprint) -> Fingerprint:
        return await self._client.fingerprint(model, _tokens(recorded), recorded.dtype)

    def _pass(self, slot: Slot, check: FingerprintCheck) -> None:
        self._put(
            Slot(
                slot.version,
                state=AdapterState.ready,
                verified=True,
                difference=check.difference,
                distances=check.distances,
            )
        )
        log.info(
            "adapter.ready",
            version=slot.version,
            difference=check.difference,
            distances=dict(check.distances),
            generation=self._generation,
        )

    def _refuse(self, slot: Slot, check: FingerprintCheck) -> None:
        self._metrics.refusals.labels(check.fault).inc()
        self._put(
            Slot(
                slot.version,
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
            version=slot.version,
            fault=check.fault,
            reason=check.reason,
            difference=check.difference,
            distances=dict(check.distances),
        )

    def _retry(self, slot: Slot, state: AdapterState, fault: str, reason: str) -> None:
        """Try again later; twice as late each time, up to a limit."""
        wait_s = backoff_s(slot.attempts)
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
            "adapter.failed",
            version=slot.version,
            fault=fault,
            reason=reason,
            retry_in_s=wait_s,
        )

    def _put(self, slot: Slot) -> None:
        self._slots[slot.version] = slot

    async def _tell(self) -> None:
        counts = dict.fromkeys(AdapterState, 0)
        for slot in self.adapters():
            counts[slot.state] += 1
        for state, count in counts.items():
            self._metrics.adapters.labels(state).set(count)
        async with self._changed:
            self._changed.notify_all()

    def _needed(self) -> frozenset[str]:
        """Checksums of the folders that the engine may read again at any time."""
        names = {version.record.version for version in self._wanted} | set(self._slots)
        return frozenset(self._record(name).adapter_sha256 for name in names)

    def _record(self, version: str) -> VersionRecord:
        known = self._registry.get(version)
        assert known is not None
        return known.record


def backoff_s(failures: int) -> float:
    """Seconds to the next try after so many earlier failures: twice as long each time, bounded."""
    return min(RETRY_FIRST_S * 2 ** min(failures, 10), RETRY_MAX_S)


def _tokens(fingerprint: Fingerprint) -> Tokens:
    return tuple(text.tokens for text in fingerprint.texts)


def _prune(cache: Path, needed: frozenset[str]) -> None:
    """Delete cached folders that nobody needs, but for the newest few."""
    spare = sorted(
        (path for path in cache.iterdir() if path.is_dir() and path.name not in needed),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in spare[SPARE_FOLDERS:]:
        shutil.rmtree(path, ignore_errors=True)
