"""Base models: the revision, and a hash over the files that decide what an adapter on it computes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""The first of these patterns that a folder has; a hub's repository may have both forms."""
DESCRIPTIONS = ("config.json", "tokenizer.json")
MAX_FILES = 1_024
"""Files of a base that are hashed at most; the largest published models have a few hundred."""
CHUNK_BYTES = 16 * 1024 * 1024


class BaseIdentity(NamedTuple):
    """Which base it is, byte for byte. What cannot be told here is empty."""

    revision: str = ""
    """The hub's commit; empty for a folder that is no snapshot of the hub."""
    sha256: str = ""
    """SHA-256 in hex over the files' names and hashes; empty where they are not on this machine."""


def identify_base(
    base: str,
    cache: Path,
    revision: str = "main",
    *,
    moved: Callable[[], None] = lambda: None,
) -> BaseIdentity:
    """Revision and hash of a base model; reads gigabytes the first time.

    Args:
        base: Hub id or path, as a record names it.
        cache: JSON file with the hash of each file by path, size and time of change, written after
            each file, so that a restart goes on from there. One that cannot be read or written
            costs time only.
        revision: Branch, tag or commit of the hub, where the base is no path.
        moved: Called for each chunk read: a slow disk takes longer than a watchdog waits.

    Raises:
        OSError: a file of the base cannot be read.

    """
    folder, commit = _located(base, revision)
    files = _files(folder) if folder else []
    if not files:
        return BaseIdentity(commit)
    hashes = _read(cache)
    digest = hashlib.sha256()
    for path in files:
        place, stat = str(path.resolve()), path.stat()
        mark = [stat.st_size, stat.st_mtime_ns]
        if hashes.get(place, [])[:-1] != mark:
            hashes[place] = [*mark, _sha256(path, moved)]
            _write(cache, hashes)
        digest.update(f"{path.name}\0{hashes[place][-1]}\n".encode())
    return BaseIdentity(commit, digest.hexdigest())


def has_base_files(base: str, revision: str = "main") -> bool:
    """Whether a base can be loaded on this machine without fetching it from the hub."""
    folder, _ = _located(base, revision)
    return folder is not None and bool(_files(folder))


def base_problem(base: str) -> str:
    """Why a base cannot be loaded, by the names of its files; empty where none is seen.

    Files are looked at where the base is a folder: a hub's snapshot may still be completed.
    """
    folder = Path(base)
    cure = "give a folder with model and tokenizer, or a hub id"
    if not folder.is_dir():
        is_path = base.startswith(("/", "./", "../"))
        return f"base: {base} is no folder; {cure}" if is_path else ""
    wanted = {"config.json": ("config.json",), WEIGHTS[0]: WEIGHTS}
    missing = [
        name
        for name, patterns in wanted.items()
        if not any(any(folder.glob(pattern)) for pattern in patterns)
    ]
    if not missing:
        return ""
    return f"base: {base} does not load: it has no {' and no '.join(missing)}; {cure}"


def base_mismatch(recorded: str, found: str) -> str:
    """Why an adapter must not be served on the base that is here; empty where it may.

    Args:
        recorded: The hash in the version's record; empty in older ones.
        found: The hash of the base here; empty where it is not known.

    """
    if not recorded or not found or recorded == found:
        return ""
    return (
        f"base: its files have the SHA-256 {found[:12]}… here, and the adapter was trained on "
        f"{recorded[:12]}…; serve that revision of the base, or train on this one"
    )


def _located(base: str, revision: str) -> tuple[Path | None, str]:
    """Folder of a base and its commit: the path itself, or the hub's snapshot on this machine."""
    if (path := Path(base)).is_dir():
        return path, path.name if path.parent.name == "snapshots" else ""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = hub / f"models--{base.replace('/', '--')}"
    commit = revision
    with contextlib.suppress(OSError, ValueError):
        commit = (repository / "refs" / revision).read_text().strip()
    folder = repository / "snapshots" / commit
    return (folder, commit) if folder.is_dir() else (None, "")


def _files(folder: Path) -> list[Path]:
    forms = [sorted(folder.glob(pattern)) for pattern in WEIGHTS]
    weights = next(filter(None, forms), list[Path]())
    described = [folder / name for name in DESCRIPTIONS if (folder / name).is_file()]
    return [*described, *weights][:MAX_FILES] if weights else []


def _sha256(path: Path, moved: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            moved()
    return digest.hexdigest()


def _read(cache: Path) -> dict[str, list[Any]]:
    """Hashes of the files that are still there, of other bases too."""
    try:
        found = json.loads(cache.read_text())
        return {str(place): list(one) for place, one in found.items() if Path(place).is_file()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(cache: Path, hashes: dict[str, list[Any]]) -> None:
    partial = cache.with_name(f".partial-{os.getpid()}-{cache.name}")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(hashes))
        partial.replace(cache)
