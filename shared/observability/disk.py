"""Room on the volumes that a service keeps its files on, measured at each scrape.

A service's own files are below RATCHET_DATA_DIR (spool, rows, read model, people's keys, jobs) and
TMPDIR. Stores of several services, such as datasets, count where their URI is a local folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.paths import local_folder
from shared.settings import ServiceSettings


class Directory(StrEnum):
    """What a directory is for: the closed set of the label `directory`."""

    data = "data"
    temporary = "temporary"
    datasets = "datasets"
    adapters = "adapters"
    media = "media"


def watch_disk(
    registry: CollectorRegistry,
    settings: ServiceSettings,
    stores: Mapping[Directory, str] | None = None,
) -> None:
    """Export free bytes and size of a service's directories.

    Args:
        registry: The service's metrics.
        settings: Of the service; its RATCHET_DATA_DIR counts, and TMPDIR.
        stores: URIs that the service writes below; only local folders count.

    """
    folders = {
        Directory.data: settings.data_dir,
        Directory.temporary: Path(tempfile.gettempdir()),
    }
    for directory, uri in (stores or {}).items():
        if folder := local_folder(uri):
            folders[directory] = folder
    registry.register(DiskRoom(folders))


class DiskRoom(Collector):
    """`ratchet_disk_free_bytes` and `ratchet_disk_size_bytes` by directory."""

    def __init__(self, folders: Mapping[Directory, Path]) -> None:
        self._folders = dict(folders)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Measure now. A directory whose volume does not answer has no sample: 0 would be an alarm."""
        free = GaugeMetricFamily(
            "ratchet_disk_free_bytes",
            "Room left on the volume of a directory.",
            labels=("directory",),
        )
        size = GaugeMetricFamily(
            "ratchet_disk_size_bytes",
            "Room that the volume can have: without what its file system reserves for root.",
            labels=("directory",),
        )
        for directory, folder in self._folders.items():
            try:
                usage = shutil.disk_usage(_existing(folder))
            except OSError:
                continue
            free.add_metric((directory.value,), usage.free)
            size.add_metric((directory.value,), usage.used + usage.free)
        yield free
        yield size


def _existing(folder: Path) -> Path:
    """The folder, or where it will be made: its nearest parent that is there."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
