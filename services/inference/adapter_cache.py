"""Adapter cache: adapter folders fetched from the store, by checksum, pruned to what is needed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path

import structlog

from shared.contracts.events.versions import RewardRecord, VersionRecord
from shared.registry.adapters import AdapterUnavailable, fetch

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 300.0
SPARE_FOLDERS = 4
"""Folders kept beside those that are needed."""


class AdapterCache:
    """One replica's folders `<root>/<sha256>`, whose bytes never change under a path."""

    def __init__(self, root: Path, *, roots: Collection[str], max_bytes: int) -> None:
        """`roots` are where adapters may come from; `max_bytes` is the size of the largest."""
        self._root = root
        self._fetch = partial(fetch, cache=root, roots=roots, max_bytes=max_bytes)

    async def fetch(self, record: VersionRecord | RewardRecord) -> Path:
        """The folder of an adapter, fetched unless it is there.

        Raises:
            AdapterUnavailable: the store did not hand it over in time.
            AdapterError: what the store holds is not the registered adapter.
            OSError: the cache cannot be read or written.

        """
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                folder = await asyncio.to_thread(
                    self._fetch, record.adapter_uri, record.adapter_sha256
                )
        except TimeoutError as error:
            raise AdapterUnavailable(
                f"{record.adapter_uri}: not fetched within {FETCH_TIMEOUT_S:g} s"
            ) from error
        return folder.resolve()

    async def prune(self, needed: Collection[str]) -> None:
        """Delete folders that are not needed; one that is deleted meanwhile is skipped."""
        try:
            await asyncio.to_thread(_prune, self._root, needed)
        except OSError as error:
            log.warning("cache.not_pruned", error=str(error))


def _prune(root: Path, needed: Collection[str]) -> None:
    spare = sorted(
        (path for path in root.iterdir() if path.is_dir() and path.name not in needed),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in spare[SPARE_FOLDERS:]:
        shutil.rmtree(path, ignore_errors=True)
