"""Registration of versions of prompts and settings: checked, written once, never changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field

from services.rollout.errors import Conflict, NotAllowed, Unknown, Unsure
from shared.clock import Clock
from shared.contracts.events.base import ModelName, Name, OptionalIdentifier, OptionalName
from shared.contracts.events.versions import (
    GateCheck,
    GateResult,
    Lifecycle,
    RequestDefaults,
    ServedSettings,
    SettingsRecord,
    VersionRecord,
    settings_key,
)
from shared.contracts.topics import VERSIONS
from shared.kafka.log import EventLog, LogUnavailable
from shared.registry.versions import Registry, Version
from shared.validation import field_refusal

log = structlog.get_logger(__name__)

SEEN_TIMEOUT_S = 5.0
SEEN_POLL_S = 0.02
LOOK = "look with `ratchet versions list` before another try"
NOT_EVALUATED = GateCheck(
    name="not_evaluated",
    passed=True,
    detail="registered without an evaluation; `ratchet versions evaluate` adds one",
)


class DefaultsRequest(RequestDefaults):
    """Defaults as they are asked for: a field that is none is an error."""

    model_config = ConfigDict(extra="forbid")


class SettingsRequest(ServedSettings):
    """Settings as they are asked for: a field that is none is an error."""

    model_config = ConfigDict(extra="forbid")
    defaults: DefaultsRequest = DefaultsRequest()  # pyright: ignore[reportIncompatibleVariableOverride]


class RegisterRequest(BaseModel):
    """A version of prompts and settings, who wants it, and why."""

    model_config = ConfigDict(extra="forbid")
    version: Name
    model: ModelName
    base: OptionalIdentifier = Field(
        default="",
        description="the base model's name at the engine; absent: stable's, else the engines' own",
    )
    adapter_of: OptionalName = Field(
        default="",
        description="the version whose adapter, if it has one, it serves; absent: the base alone",
    )
    settings: SettingsRequest = SettingsRequest()
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class Registrations:
    """Writes checked records to the registry's topic; of two under one name the first counts."""

    def __init__(
        self,
        event_log: EventLog,
        registry: Registry,
        clock: Clock,
        bases: Callable[[], Awaitable[set[str]]],
    ) -> None:
        """`bases` gives the names of the base models that the engines serve."""
        self._log = event_log
        self._registry = registry
        self._clock = clock
        self._bases = bases

    async def register(self, request: RegisterRequest, actor: str) -> Version:
        """The registered version, once it was read back. `actor` is who was authenticated.

        Raises:
            RolloutError: it may not be registered, or it is not known whether it was.

        """
        if not (request.base or request.adapter_of or self._registry.stable(request.model)):
            request = request.model_copy(update={"base": await self._engines_base(request.model)})
        record = checked_record(request, self._registry, actor, self._clock.now())
        try:
            await self._log.publish(
                VERSIONS,
                key=settings_key(record.version),
                event=record,
                event_id=settings_key(record.version),
            )
        except LogUnavailable as error:
            raise Unsure(f"it is not known whether it was registered: {error}; {LOOK}") from error
        version = await self._seen(record.version)
        if version.record != record:
            raise field_refusal(
                Conflict,
                "version",
                f"{record.version} was registered by another a moment before",
                "ask under another name",
            )
        log.info("version.registered", version=record.version, model=record.model, actor=actor)
        return version

    async def _engines_base(self, model: str) -> str:
        """The one base that all engines serve; nothing else says what a first version is made of."""
        bases = await self._bases()
        if len(bases) != 1:
            raise field_refusal(
                NotAllowed,
                "base",
                f"is required, as {model} has no stable version and the engines serve "
                f"{' and '.join(sorted(bases)) or 'none yet'}",
                "give the model's name as the engine's /v1/models has it",
            )
        return bases.pop()

    async def _seen(self, name: str) -> Version:
        """The first version on the log under this name, ours or not."""
        deadline = self._clock.monotonic() + SEEN_TIMEOUT_S
        while (version := self._registry.get(name)) is None:
            if self._clock.monotonic() > deadline:
                raise Unsure(f"{name} was written and not read back; {LOOK}")
            await self._clock.sleep(SEEN_POLL_S)
        return version


def checked_record(
    request: RegisterRequest, registry: Registry, actor: str, at: datetime
) -> SettingsRecord:
    """The record of a version that may be registered.

    Raises:
        RolloutError: names the field, the rule and the remedy.

    """
    name, model = request.version, request.model
    if registry.get(name) is not None:
        raise field_refusal(
            Conflict, "version", f"{name} exists and names are never reused", "take another"
        )
    if name in {model, *(version.record.model for version in registry.versions())}:
        raise field_refusal(Conflict, "version", f"{name} is a model's name", "take another")
    stable = registry.stable(model)
    stables = stable.record.base if stable else ""
    adapter, base = _served_by(request, registry) or (None, request.base or stables)
    if request.base not in ("", base):
        raise field_refusal(
            NotAllowed,
            "base",
            f"{request.base} is not {base}, which {request.adapter_of} is of",
            "leave it out",
        )
    # The engine serves one base, so stable's files are those of a version without an adapter.
    same = adapter or (stable.record if stable and base == stables else None)
    return SettingsRecord(
        version=name,
        model=model,
        base=base,
        base_revision=same.base_revision if same else "",
        base_sha256=same.base_sha256 if same else "",
        adapter_of=adapter.version if adapter else "",
        parent=stable.record.version if stable else "",
        settings=ServedSettings.model_validate(request.settings.model_dump()),
        gate=GateResult(passed=True, checks=(NOT_EVALUATED,)),
        actor=actor,
        on_behalf_of=request.on_behalf_of,
        reason=request.reason,
        created_at=at,
    )


def _served_by(
    request: RegisterRequest, registry: Registry
) -> tuple[VersionRecord | None, str] | None:
    """What `adapter_of` serves: the trained version with its adapter, None for the base alone; and
    the base. None where the request names no version.
    """
    name = request.adapter_of
    if not name:
        return None
    known = registry.get(name)
    if known is None or known.record.model != request.model:
        raise field_refusal(
            Unknown,
            "adapter_of",
            f"{name} is not a version of {request.model}",
            "GET /v1/versions lists them",
        )
    trained = registry.adapter(name)
    if trained is None:
        return None, known.record.base
    if not trained.gate.released or known.lifecycle is Lifecycle.rejected:
        raise field_refusal(
            NotAllowed,
            "adapter_of",
            f"{name} was rejected or did not pass its gate",
            "take a released version",
        )
    return trained, trained.base
