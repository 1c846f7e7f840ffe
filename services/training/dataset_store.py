"""Dataset storage: snapshots and imported files under an fsspec root. Calls block.

`<datasets>/<dataset_id>/` holds the five files of a dataset and `manifest.json`, which is written
last: a folder without one is the rest of a broken write and no dataset. What an erasure left of a
dataset is in a folder beside the manifest, named after its hash, so that a manifest and its files
change at once.
"""

# pyright: strict
from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from services.training.dataset_files import DataFiles
from services.training.dataset_manifest import Dataset, Manifest
from services.training.errors import BadDataset, DiskFull, StoreUnavailable
from services.training.importing import MAX_BYTES, ImportedRows
from services.training.spill import require_room
from shared.contracts.events.training import TrainingMethod
from shared.contracts.names import check_name
from shared.paths import OutsideRoot, contained_uri

MANIFEST = "manifest.json"
SPOOL_BYTES = 16 * 1024 * 1024
"""Of an import in memory; a longer one is in a temporary file."""
COPY_BYTES = 1024 * 1024
BLOCK_BYTES = 8 * 1024 * 1024
"""Of a file in memory on its way to an object storage: a part of a multipart upload."""
SCRATCH_FACTOR = 5
"""Bytes below TMPDIR for each byte of an import: its copy, its rows, their keys and the files."""
READ_TRIES = 3
"""Tries of a dataset whose files an erasure takes away meanwhile."""
REPLACE_TRIES = 3
"""Tries of a replacement whose files another replica's clearing takes away meanwhile."""


class DatasetStore:
    """Datasets under an fsspec root. Calls block; run them in a thread."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    @property
    def root(self) -> str:
        """The fsspec root."""
        return self._root

    def write(self, dataset: Dataset) -> None:
        """Store a dataset; storing the same one again changes nothing.

        Raises:
            StoreUnavailable: the storage refused it.

        """
        try:
            filesystem, root = _locate(f"{self._root}/{dataset.manifest.dataset_id}")
            if filesystem.exists(f"{root}/{MANIFEST}"):
                return
            _write_files(filesystem, root, _chunks_of(dataset.files))
            _write_manifest(filesystem, root, dataset.manifest.encode())
        except Exception as error:
            # Storage libraries raise errors of their own: s3fs hands botocore's on as they are.
            raise StoreUnavailable(f"{self._root}: cannot be written: {error}") from error

    def replace(self, dataset: Dataset) -> None:
        """Store a dataset in place of the one of its name, as an erasure left it.

        A reader sees the one or the other, whole: the new files lie beside the old ones before the
        manifest is replaced. Another replica that clears for an erasure of its own meanwhile may
        take them for old ones; so they are looked for once the manifest names them.

        Raises:
            StoreUnavailable: the storage refused it.

        """
        name, manifest = dataset.manifest.dataset_id, dataset.manifest.encode()
        try:
            filesystem, root = _locate(f"{self._root}/{name}")
            folder = f"{root}/{_generation(manifest)}"
            for _ in range(REPLACE_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    _write_files(filesystem, folder, _chunks_of(dataset.files))
                    _write_manifest(filesystem, root, manifest)
                    filesystem.invalidate_cache()
                    if all(filesystem.exists(f"{folder}/{file}") for file in dataset.files):
                        break
            else:
                raise FileNotFoundError(f"{folder}: its files are deleted again and again")
        except Exception as error:
            raise StoreUnavailable(f"{self._root}: cannot be written: {error}") from error
        self.drop_replaced(name)

    def drop_replaced(self, dataset_id: str) -> None:
        """Delete the files that erasures replaced, which still have what was erased.

        Raises:
            StoreUnavailable: the storage refused it.

        """
        try:
            filesystem, root = _locate(f"{self._root}/{dataset_id}")
            for path in cast("list[str]", filesystem.ls(root, detail=False)):
                # Looked up for each: another replica may replace the manifest meanwhile.
                _, folder = _find(filesystem, root)
                if folder == root:
                    return
                if path.split("/")[-1] not in (MANIFEST, folder.split("/")[-1]):
                    with contextlib.suppress(FileNotFoundError):
                        filesystem.rm(path, recursive=True)
        except Exception as error:
            raise StoreUnavailable(
                f"{self._root}/{dataset_id}: cannot be cleared: {error}"
            ) from error

    def names(self) -> list[str]:
        """Ids of all datasets.

        Raises:
            StoreUnavailable: the storage did not answer.

        """
        try:
            filesystem, root = _locate(self._root)
            found = cast("list[str]", filesystem.glob(f"{root}/*/{MANIFEST}"))
        except Exception as error:
            raise StoreUnavailable(f"{self._root}: cannot be read: {error}") from error
        return sorted(path.split("/")[-2] for path in found)

    def read(self, dataset_id: str) -> Dataset | None:
        """A whole dataset with its hashes checked, or None where it is not.

        Raises:
            StoreUnavailable: the storage did not answer.
            BadDataset: a file's bytes are not those of the manifest, or the id is no name.

        """
        try:
            check_name(dataset_id)
        except ValueError as error:
            raise BadDataset(f"dataset_id: {error}") from error
        try:
            filesystem, root = _locate(f"{self._root}/{dataset_id}")
            if not filesystem.exists(f"{root}/{MANIFEST}"):
                return None
            manifest, files = _read_whole(filesystem, root)
        except DiskFull:
            raise
        except Exception as error:
            raise StoreUnavailable(f"{self._root}/{dataset_id}: cannot be read: {error}") from error
        for name, ref in files.refs.items():
            if ref.sha256 != manifest.files[name].sha256:
                raise BadDataset(f"{dataset_id}/{name}: its bytes are not those of the manifest")
        return Dataset(manifest, files)

    def snapshots(self, model: str, method: TrainingMethod) -> list[Manifest]:
        """The snapshots of the log, the one with the highest offsets last.

        Raises:
            StoreUnavailable: the storage did not answer.

        """
        try:
            filesystem, root = _locate(self._root)
            if not filesystem.exists(root):
                return []
            found = cast("list[str]", filesystem.glob(f"{root}/{model}-*/{MANIFEST}"))
            manifests = [
                _manifest(filesystem.cat_file(path), path.removesuffix(f"/{MANIFEST}"))
                for path in sorted(found)
            ]
        except Exception as error:
            raise StoreUnavailable(f"{self._root}: cannot be read: {error}") from error
        of_log = [
            manifest
            for manifest in manifests
            if (manifest.model, manifest.method, manifest.origin) == (model, method, "log")
        ]
        return sorted(of_log, key=lambda manifest: sum(manifest.offsets.values()))


def _manifest(stored: bytes, root: str) -> Manifest:
    """A stored manifest under the name of its folder."""
    return Manifest.read(stored, root.rsplit("/", maxsplit=1)[-1])


def _read_whole(filesystem: Any, root: str) -> tuple[Manifest, DataFiles]:
    """A manifest and its files, once more where an erasure replaced them meanwhile."""
    for tries_left in reversed(range(READ_TRIES)):
        manifest, folder = _find(filesystem, root)
        try:
            return manifest, DataFiles(
                {name: _stored_chunks(filesystem, f"{folder}/{name}") for name in manifest.files}
            )
        except FileNotFoundError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _find(filesystem: Any, root: str) -> tuple[Manifest, str]:
    """A stored dataset's manifest, and the folder that its files are in."""
    stored = bytes(filesystem.cat_file(f"{root}/{MANIFEST}"))
    folder = f"{root}/{_generation(stored)}"
    return _manifest(stored, root), folder if filesystem.exists(folder) else root


def _write_files(filesystem: Any, folder: str, files: Mapping[str, Iterable[bytes]]) -> None:
    filesystem.makedirs(folder, exist_ok=True)
    for name, chunks in files.items():
        with filesystem.open(f"{folder}/{name}", "wb", block_size=BLOCK_BYTES) as file:
            for chunk in chunks:
                file.write(chunk)


def _chunks_of(files: DataFiles) -> dict[str, Iterable[bytes]]:
    return {name: files.chunks(name) for name in files}


def _stored_chunks(filesystem: Any, path: str) -> Iterator[bytes]:
    with filesystem.open(path, "rb") as file:
        while chunk := bytes(file.read(COPY_BYTES)):
            yield chunk


def _write_manifest(filesystem: Any, root: str, manifest: bytes) -> None:
    # Under a name of its own first: two replicas may write at once.
    part = f"{root}/.{uuid.uuid4().hex}.{MANIFEST}"
    filesystem.pipe_file(part, manifest)
    filesystem.mv(part, f"{root}/{MANIFEST}")


def _generation(manifest: bytes) -> str:
    """The folder of the files of a dataset that an erasure left, by its encoded manifest."""
    return hashlib.sha256(manifest).hexdigest()[:16]


def read_import(uri: str, roots: Collection[str], *, strict: bool = False) -> ImportedRows:
    """A copy of a JSONL file below one of the roots (paths or fsspec URIs).

    Raises:
        BadDataset: it lies elsewhere, there is no such file, or it is too large.
        DiskFull: there is no room for its copy and its rows while they are selected.
        StoreUnavailable: the storage did not answer.

    """
    try:
        contained_uri(uri, roots)
    except OutsideRoot as error:
        raise BadDataset(f"dataset_uri: {error}; see RATCHET_TRAINING_IMPORT_ROOTS") from error
    try:
        filesystem, path = _locate(uri)
        size = int(filesystem.size(path) or 0)
        if size > MAX_BYTES:
            raise BadDataset(f"dataset_uri: {uri} has {size} bytes, {MAX_BYTES} at most; split it")
        require_room(SCRATCH_FACTOR * size)
        return ImportedRows(uri, _copied(filesystem, path), strict=strict)
    except (FileNotFoundError, IsADirectoryError):
        raise BadDataset(f"dataset_uri: {uri} is no file; give the URI of a JSONL file") from None
    except (ValueError, ImportError) as error:
        raise BadDataset(f"dataset_uri: {uri}: {error}") from error
    except (BadDataset, DiskFull):
        raise
    except Exception as error:
        raise StoreUnavailable(f"{uri}: cannot be read: {error}") from error


def _copied(filesystem: Any, path: str) -> BinaryIO:
    """A file's content, in memory while it is small."""
    with ExitStack() as unless_whole:
        spool = unless_whole.enter_context(SpooledTemporaryFile(max_size=SPOOL_BYTES))
        with filesystem.open(path, "rb") as file:
            shutil.copyfileobj(file, spool, COPY_BYTES)
        unless_whole.pop_all()
        return cast("BinaryIO", spool)


def store_files(uri: str, files: Mapping[str, bytes]) -> None:
    """Write some files into a folder, over older ones of the same names.

    Raises:
        StoreUnavailable: the storage refused them.

    """
    try:
        filesystem, root = _locate(uri)
        _write_files(filesystem, root, {name: (data,) for name, data in files.items()})
    except Exception as error:
        raise StoreUnavailable(f"{uri}: cannot be written: {error}") from error


def lay_out(dataset: Dataset, folder: Path) -> None:
    """Write a dataset's files where a trainer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in dataset.files:
        partial = folder / f".{name}.partial"
        with partial.open("wb") as file:
            file.writelines(dataset.files.chunks(name))
        partial.replace(folder / name)
    (folder / MANIFEST).write_bytes(dataset.manifest.encode())


def _locate(uri: str) -> tuple[Any, str]:
    filesystem, root = cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]
    # Object storages list from a cache, which knows nothing of what another replica wrote.
    filesystem.invalidate_cache()
    return filesystem, root.rstrip("/")
