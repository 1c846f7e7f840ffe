"""Local copies of published adapters that trainings read: fetched once, the least recent dropped."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from services.training.settings import TrainingSettings
from shared.contracts.events.versions import RewardRecord, VersionRecord
from shared.registry.adapters import fetch

KEPT = 8
"""Copies kept; one job reads four at most: parent, first version, predecessor, published one."""


class FetchedAdapters:
    """The copies below the data directory; of one replica, which does one job at a time."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._folder = settings.data_dir.resolve() / "training" / "adapters"

    async def of(self, record: VersionRecord | RewardRecord) -> Path:
        """The folder with an adapter's files.

        Raises:
            AdapterError: it cannot be fetched; `AdapterGone` where storage has no file of it.

        """
        return await asyncio.to_thread(self._fetched, record)

    def _fetched(self, record: VersionRecord | RewardRecord) -> Path:
        path = fetch(
            record.adapter_uri,
            record.adapter_sha256,
            self._folder,
            roots=self._settings.readable_adapter_roots,
            max_bytes=self._settings.adapter_max_bytes,
        )
        os.utime(path)
        copies = sorted(self._folder.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in copies[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return path
