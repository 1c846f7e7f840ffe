"""User key files: which file of a folder a process has. Several processes of a service may share one."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import BinaryIO, Final

PROCESSES: Final = 64
"""Most processes that may share a folder: each has a file of its own."""
UNUSED_S: Final = 86_400.0
"""Age from which a file that no process has is deleted: it may hold keys that were destroyed since."""


def claim(folder: Path) -> tuple[Path, BinaryIO]:
    """The first file of a folder that no other process has, and its lock.

    Raises:
        OSError: the folder cannot be written, or PROCESSES have a file there.

    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine: tuple[Path, BinaryIO] | None = None
    for number in range(PROCESSES):
        path = folder / f"{number}.sqlite"
        if mine is not None and not path.exists():
            continue
        lock = path.with_suffix(".lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if mine is None:
            mine = path, lock
            continue
        if path.stat().st_mtime < time.time() - UNUSED_S:
            delete(path)
        lock.close()
    if mine is None:
        raise OSError(f"{folder}: {PROCESSES} processes have a file here; give some another folder")
    return mine


def delete(path: Path) -> None:
    """Delete a file with its write-ahead log."""
    for suffix in ("-wal", "-shm", ""):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
