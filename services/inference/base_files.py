"""Base files of this replica: their hash, against the one that an adapter was trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from shared.contracts.events.versions import VersionRecord
from shared.registry.base_models import BaseIdentity, base_mismatch, identify_base

log = structlog.get_logger(__name__)


class BaseFiles:
    """Hashes the base's files once, at the first question; again where they could not be read."""

    def __init__(self, base: str, cache: Path, revision: str = "main") -> None:
        """`base` is a path or hub id, empty for an external engine; `cache` keeps files' hashes."""
        self._base = base
        self._cache = cache
        self._revision = revision
        self._identity = BaseIdentity()

    async def refusal(self, record: VersionRecord, moved: Callable[[], None]) -> str:
        """Why the adapter may not be served on this base; empty where it may.

        `moved` is called in a thread while files are read.

        An adapter whose record has no hash is accepted, and so is each where the files are not
        here or cannot be read; the log says so.
        """
        found = await self._identify(moved)
        if not (record.base_sha256 and found.sha256):
            log.warning(
                "adapter.base_unchecked",
                version=record.version,
                recorded=record.base_sha256 or "unknown",
                here=found.sha256 or "unknown",
            )
        return base_mismatch(record.base_sha256, found.sha256)

    async def _identify(self, moved: Callable[[], None]) -> BaseIdentity:
        if self._base and not self._identity.sha256:
            self._identity = await asyncio.to_thread(self._read, moved)
        return self._identity

    def _read(self, moved: Callable[[], None]) -> BaseIdentity:
        try:
            return identify_base(self._base, self._cache, self._revision, moved=moved)
        except OSError as error:
            log.warning("base.unreadable", base=self._base, error=str(error))
            return BaseIdentity()
