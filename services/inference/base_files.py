"""Base files of this replica: their hash, against the one that an adapter was trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from services.inference.errors import RewardModelElsewhere, ScorerUnavailable
from shared.contracts.events.versions import RewardRecord, VersionRecord
from shared.registry.base_models import (
    BaseIdentity,
    base_mismatch,
    has_base_files,
    identify_base,
)

log = structlog.get_logger(__name__)


class BaseFiles:
    """Hashes the base's files once, at the first question; again where they could not be read."""

    def __init__(self, base: str, cache: Path, revision: str = "main") -> None:
        """`base` is a path or hub id, empty for an external engine; `cache` keeps files' hashes."""
        self.name = base
        self.revision = revision
        self._cache = cache
        self._identity = BaseIdentity()

    def known_refusal(self, recorded: str) -> str:
        """Why what was made on a base with this hash may not be served, as far as `read` has read."""
        return base_mismatch(recorded, self._identity.sha256)

    async def refusal(
        self, record: VersionRecord | RewardRecord, moved: Callable[[], None] = lambda: None
    ) -> str:
        """Why the adapter may not be served on this base; empty where it may.

        `moved` is called in a thread while files are read.

        An adapter whose record has no hash is accepted, and so is each where the files are not
        here or cannot be read; the log says so.
        """
        found = await self.read(moved)
        if not (record.base_sha256 and found.sha256):
            log.warning(
                "adapter.base_unchecked",
                adapter=record.adapter_uri,
                recorded=record.base_sha256 or "unknown",
                here=found.sha256 or "unknown",
            )
        return base_mismatch(record.base_sha256, found.sha256)

    async def of_reward_model(self, record: RewardRecord) -> tuple[str, str]:
        """Base and revision on which a reward model's scores are computed here.

        Raises:
            ScorerUnavailable: the base has other files here than it was made on.
            RewardModelElsewhere: it was made on another base than the engine's, which is not on this
                machine.

        """
        revision = record.base_revision or "main"
        if record.base == self.name:
            if wrong := await self.refusal(record):
                raise ScorerUnavailable(f"{record.name}: {wrong}")
            return record.base, record.base_revision or self.revision
        here = await self.read(lambda: None)
        if record.base_sha256 and record.base_sha256 == here.sha256:
            return self.name, self.revision
        if self.name and not await asyncio.to_thread(has_base_files, record.base, revision):
            raise RewardModelElsewhere(
                f"{record.name}: its base {record.base} is not on this machine; ask an inference "
                f"service on that base, or train a reward model on {self.name}"
            )
        return record.base, revision

    async def read(self, moved: Callable[[], None]) -> BaseIdentity:
        """Which base it is, byte for byte; reads the files at the first call."""
        if self.name and not self._identity.sha256:
            self._identity = await asyncio.to_thread(self._hashed, moved)
        return self._identity

    def _hashed(self, moved: Callable[[], None]) -> BaseIdentity:
        try:
            return identify_base(self.name, self._cache, self.revision, moved=moved)
        except OSError as error:
            log.warning("base.unreadable", base=self.name, error=str(error))
            return BaseIdentity()
