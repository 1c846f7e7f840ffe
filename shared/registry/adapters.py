"""LoRA adapter folders: checksums, publishing, fetching and fingerprints (invariant 8).

A folder travels through an fsspec root (a directory, object storage) and is named by its checksum
wherever it is cached, so its bytes never change under a path. The fingerprint is what the model
with this adapter answers to eight fixed texts: the log-probability of each token given those
before it (teacher forcing).
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import mkdtemp
from types import MappingProxyType
from typing import Any, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from shared.contracts.events.versions import Fingerprint
from shared.contracts.names import check_sha256
from shared.paths import OutsideRoot, contained, contained_uri

FINGERPRINT_TEXTS: tuple[str, ...] = (
    (
        "Hello, my parcel has not arrived yet. Could you tell me where it is? "
        "I am sorry for the delay. I looked it up: it left our depot this morning."
    ),
    (
        "I want my money back. "
        "Refunds take three to five days. You will get an e-mail once yours is on its way."
    ),
    (
        "How do I change the address of my order? "
        "Open your orders, choose the one you mean, and press Change address. It takes a minute."
    ),
    (
        "The left earbud is silent. "
        "Put both back into the case for ten seconds, then take them out again. Did that help?"
    ),
    "Do you ship to other countries? No.",
    (
        "Why was I charged twice? "
        "Thank you for telling us! One of the two is only reserved and goes away by itself on Friday."
    ),
    "Water boils at a lower temperature on a mountain, because the air presses on it less.",
    "Write a line about autumn: leaves let go, one by one, and the path turns to gold.",
)
"""Tokenised by the base model's tokenizer without added special tokens, and then kept as ids."""

TOLERANCE: Mapping[str, float] = MappingProxyType({"float32": 0.02, "bfloat16": 0.1})
"""Largest mean absolute difference, in nats, still taken for the same adapter, by dtype."""

DISTINCTION = 5.0
"""How many tolerances an adapter must lie away from every other model it could be mistaken for."""

MAX_FILES = 256
"""Most files an adapter folder may have; an adapter has about ten."""


MAX_BYTES = 8 * 2**30
"""Most bytes of an adapter, unless a setting says otherwise; rank 256 on 70 B parameters has 6 GiB."""


class AdapterError(Exception):
    """An adapter that cannot be used, with the reason."""


class AdapterUnavailable(AdapterError):
    """The storage is unavailable; another try later may succeed."""


class AdapterGone(AdapterUnavailable):
    """The storage answers and has no file of the adapter: deleted, or a volume is not mounted."""


class ChecksumMismatch(AdapterError):
    """The bytes are not the registered ones."""


def checksum(folder: Path) -> str:
    """SHA-256 of an adapter folder in hex: every file's relative name and contents, by name.

    Each name and each file is preceded by its length (8 bytes, big-endian), so no two folders
    share the input of the hash.

    Raises:
        AdapterError: there is no such folder, or it has no or too many files.

    """
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    if not 0 < len(names) <= MAX_FILES:
        raise AdapterError(
            f"{folder.name}: an adapter folder has 1 to {MAX_FILES} files, not {len(names)}"
        )
    digest = hashlib.sha256()
    for name in names:
        encoded = name.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
        path = folder / name
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def publish(folder: Path, uri: str) -> str:
    """Create an adapter folder at `uri` (any fsspec URI or path); returns its checksum.

    Create-only: no file of anybody is deleted or overwritten. A file appears whole or not at all,
    so an interrupted upload is repeated by the same call, and two writers of the same bytes do no
    harm.

    Raises:
        AdapterError: the folder is empty or too large, or `uri` holds other bytes.
        AdapterUnavailable: the storage refused it.

    """
    digest = checksum(folder)
    try:
        filesystem, root = _locate(uri)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                _create(filesystem, path, root, path.relative_to(folder).as_posix())
    except AdapterError:
        raise
    except Exception as error:
        # Storage libraries raise errors of their own: s3fs hands botocore's on as they are.
        raise AdapterUnavailable(f"{uri}: cannot be written: {error}") from error
    return digest


def _create(filesystem: Any, path: Path, root: str, name: str) -> None:
    """Upload one file under a name of its own beside `root`, then rename it into place.

    Beside and not below: whoever fetches `root` meanwhile must not find half a file there.
    """
    target = f"{root}/{name}"
    if filesystem.exists(target):
        with filesystem.open(target, "rb") as theirs, path.open("rb") as ours:
            same = _digest(theirs) == _digest(ours)
        if not same:
            raise AdapterError(
                f"{target}: exists with other bytes; published files are never overwritten, "
                "publish to another place"
            )
        return
    partial = f"{root.rpartition('/')[0]}/.partial-{uuid.uuid4().hex}"
    filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
    try:
        filesystem.put_file(str(path), partial)
        filesystem.mv(partial, target)
    except BaseException:
        with contextlib.suppress(Exception):
            filesystem.rm_file(partial)
        raise


def fetch(
    uri: str, sha256: str, cache: Path, *, roots: Collection[str], max_bytes: int = MAX_BYTES
) -> Path:
    """The folder `cache/<sha256>` with the adapter's files, fetched unless it is there already.

    The record that gave `uri` and `sha256` is not trusted: it may name any place and any text.

    Args:
        uri: Where the record says the files are.
        sha256: The registered checksum, which becomes the folder's name.
        cache: Folder of all cached adapters.
        roots: Paths and URIs below which adapters may lie; anything else is not read.
        max_bytes: Most bytes of all files together.

    Raises:
        AdapterError: `sha256` is none, `uri` lies below no root, or the files there are too many,
            too large or named so that they would be written elsewhere.
        AdapterGone: the storage holds no such folder.
        AdapterUnavailable: the storage did not hand it over.
        ChecksumMismatch: the storage holds other bytes than those registered.
        OSError: the cache cannot be read or written.

    """
    try:
        target = contained(cache, check_sha256(sha256))
        contained_uri(uri, roots)
    except ValueError as error:
        raise AdapterError(f"adapter: {error}") from error
    if target.is_dir():
        # A folder whose deletion was cut short may hold no file: damaged like any other.
        with contextlib.suppress(AdapterError):
            if checksum(target) == sha256:
                return target
        shutil.rmtree(target)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=".partial-", dir=cache))
    try:
        _download(uri, partial, max_bytes)
        found = checksum(partial)
        if found != sha256:
            raise ChecksumMismatch(
                f"{uri}: its SHA-256 is {found}, the registered one is {sha256}; "
                "publish the registered files again or register a new version"
            )
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def mean_absolute_difference(left: Fingerprint, right: Fingerprint) -> float:
    """Mean over all tokens of all texts of |left - right|, in nats.

    Raises:
        ValueError: the two were not taken over the same tokens, so they cannot be compared.

    """
    tokens = [text.tokens for text in left.texts]
    if tokens != [text.tokens for text in right.texts]:
        raise ValueError("texts: the two fingerprints were taken over different tokens")
    differences = [
        abs(ours - theirs)
        for one, other in zip(left.texts, right.texts, strict=True)
        for ours, theirs in zip(one.logprobs, other.logprobs, strict=True)
    ]
    if not differences:
        raise ValueError("texts: a fingerprint needs at least one text of two tokens")
    return sum(differences) / len(differences)


def _download(uri: str, folder: Path, max_bytes: int) -> None:
    """Copy the files below `uri`; nothing is written before every name was checked."""
    try:
        filesystem, root = _locate(uri)
        names = cast("list[str]", filesystem.find(root))
        if not names:
            raise AdapterGone(f"{uri}: there are no files; restore them from a backup")
        if len(names) > MAX_FILES:
            raise AdapterError(f"{uri}: {len(names)} files; an adapter has at most {MAX_FILES}")
        targets = {name: _target(name, root, folder) for name in names}
        left = max_bytes
        for name, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open(name, "rb") as source, target.open("wb") as copy:
                while chunk := source.read(min(1 << 20, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise AdapterError(
                            f"{uri}: more than {max_bytes} bytes; see RATCHET_ADAPTER_MAX_BYTES"
                        )
                    copy.write(chunk)
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterUnavailable(f"{uri}: cannot be read: {error}") from error


def _target(name: str, root: str, folder: Path) -> Path:
    """Where an object goes; object stores allow keys such as `adapter/../../x`."""
    below = f"{root.strip('/')}/"
    key = name.lstrip("/")
    if not key.startswith(below):
        raise AdapterError(f"{name!r}: lies outside of {root}")
    try:
        return contained(folder, key.removeprefix(below))
    except OutsideRoot as error:
        raise AdapterError(f"object name {error}") from error


def _digest(file: Any) -> bytes:
    return hashlib.file_digest(file, "sha256").digest()


def _locate(uri: str) -> tuple[Any, str]:
    filesystem, root = cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]
    return filesystem, root.rstrip("/")
