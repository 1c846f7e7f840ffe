"""A disk that is soon full: a real file system where mounting is allowed."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """256 KiB and 8 inodes where mounting is allowed, else files of at most 64 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=8", "tmpfs", str(directory)]
    if not subprocess.run(mount, check=False, capture_output=True).returncode:
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(directory)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
