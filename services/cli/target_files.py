"""Files that a command writes at its end: refused at its beginning where they could not be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from services.cli.errors import CliError, Exit

MIB = 2**20


def require_writable(option: str, path: Path, *, room: int = 0) -> None:
    """Refuse a file that could not be written, before the work is done that it is for.

    Args:
        option: The option or argument that names it.
        path: The file.
        room: Bytes that must be free for it.

    Raises:
        CliError: its folder is missing or cannot be written, it is a folder itself, or too little
            is free.

    """
    folder = path.parent
    if not folder.is_dir():
        raise CliError(f"{option} {path}: there is no folder {folder}; make it first", Exit.usage)
    if path.is_dir():
        raise CliError(f"{option} {path}: is a folder; name a file in it", Exit.usage)
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise CliError(f"{option} {path}: cannot be written; name another file", Exit.usage)
    free = shutil.disk_usage(folder).free
    if free < room:
        raise CliError(
            f"{option} {path}: {free / MIB:.0f} MiB are free in {folder}, {room / MIB:.0f} MiB are "
            "wanted; free some, or name a file on a larger disk",
            Exit.failed,
        )
