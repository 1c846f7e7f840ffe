"""Instance of the router: one of its processes, with a folder and a scrape target of its own."""

from __future__ import annotations

import asyncio
import fcntl
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import structlog

from services.router.settings import RouterSettings
from services.router.spool import Spool
from services.router.spool_shipper import SpoolShipper
from services.router.unchecked_journal import FOLDER

log = structlog.get_logger(__name__)

_FURTHER = re.compile(r"router-(\d+)")
"""Folders of the processes but the first, whose folder is the one of a router alone."""

SPOOLS = ("spool", FOLDER)
"""Folders of a process's own: what is to be shipped, and what was yet to be checked, in this order."""

RETRY_S = 10.0
"""After which a spool that could not be had is tried again."""


class FolderTaken(Exception):
    """Another running router has the folder."""


class RouterInstance:
    """Process `number` of `settings.processes`, as its folder and ports follow from that."""

    def __init__(self, settings: RouterSettings, number: int = 0) -> None:
        self._settings = settings
        self._number = number
        self.shares_port = settings.processes > 1
        """Whether other processes serve the same port."""
        self.directory = settings.data_dir / (f"router-{number}" if number else "router")
        ports = settings.operations_port
        self.operations_port = ports + number if ports else 0

    @classmethod
    def of(cls, settings: RouterSettings, arguments: list[str]) -> Self:
        """The instance that the supervisor's command names; the only one without arguments."""
        return cls(settings, int(arguments[0]) if arguments else 0)

    def left_behind(self) -> tuple[Path, ...]:
        """Folders whose spool the first process ships: no process of this installation has them."""
        if self._number:
            return ()
        found = self._settings.data_dir.glob("router-*")
        numbers = {path: _FURTHER.fullmatch(path.name) for path in found}
        return tuple(
            path
            for path, number in sorted(numbers.items())
            if number is not None and int(number[1]) >= self._settings.processes
        )


@contextmanager
def take(directory: Path) -> Iterator[None]:
    """Lock a folder for this process alone.

    Where the disk refuses even that the router starts without it; its spool tries again.

    Raises:
        FolderTaken: another process has it.

    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("ab")
    except OSError as error:
        log.warning("router.no_disk", directory=str(directory), error=str(error))
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(
                f"{directory} belongs to another running router; give each its own RATCHET_DATA_DIR"
            ) from None
        yield


async def ship_left_behind(
    waiting: list[Path],
    shipper_of: Callable[[Spool], SpoolShipper],
    limit_bytes: int,
    recovered: Counter[str],
) -> None:
    """Ship the spools of processes that are no more, as there were more of them before.

    Each folder leaves the list `waiting` once it is shipped. One that another process has, which
    may still be ending, or that the disk refuses, is tried again until it is. `recovered` counts the
    shipped records by folder, of SPOOLS.
    """
    said = False
    while True:
        for directory in tuple(waiting):
            if await _shipped(directory, shipper_of, limit_bytes, recovered):
                waiting.remove(directory)
        if not waiting:
            return
        if not said:
            log.warning("spool.left_behind", directories=[str(one) for one in waiting])
            said = True
        await asyncio.sleep(RETRY_S)


def bytes_of(directories: Iterable[Path]) -> int:
    """Bytes of the spools in some folders, without what the disk refuses to tell.

    A segment may go between its listing and the look at its size: it is shipped.
    """
    found = 0
    for directory in directories:
        for name in SPOOLS:
            with suppress(OSError):
                for path in (directory / name).glob("*.spool"):
                    with suppress(OSError):
                        found += path.stat().st_size
    return found


async def _shipped(
    directory: Path,
    shipper_of: Callable[[Spool], SpoolShipper],
    limit_bytes: int,
    recovered: Counter[str],
) -> bool:
    """Ship the spools of one folder to their end; False where they cannot be had now."""
    try:
        with take(directory):
            for name in SPOOLS:
                spool = Spool(directory / name, limit_bytes=limit_bytes)
                try:
                    if spool.trouble:
                        return False
                    await shipper_of(spool).drain(None)
                finally:
                    recovered[name] += spool.recovered
                    spool.close()
    except FolderTaken:
        return False
    log.info("spool.shipped_for_another", directory=str(directory))
    return True
