"""Dataset storage: snapshots and imported files under an fsspec root. Calls block.

`<datasets>/<dataset_id>/` holds the five files of a dataset and `manifest.json`, which is written
last: a folder without one is the rest of a broken write and no dataset.
"""

# pyright: strict
from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from services.training.errors import BadDataset, StoreUnavailable
from services.training.importing import MAX_BYTES
from services.training.snapshot import FILES, Dataset, ImportedRows, Manifest
from shared.contracts.events.training import TrainingMethod
from shared.contracts.names import check_name
from shared.paths import OutsideRoot, contained_uri

MANIFEST = "manifest.json"
STAGED = "erasing"
"""Folder below a dataset where the one that takes its place is written."""


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
            filesystem.makedirs(root, exist_ok=True)
            for name, data in dataset.files.items():
                filesystem.pipe_file(f"{root}/{name}", data)
            filesystem.pipe_file(f"{root}/.{MANIFEST}", dataset.manifest.encode())
            filesystem.mv(f"{root}/.{MANIFEST}", f"{root}/{MANIFEST}")
        except Exception as error:
            # Storage libraries raise errors of their own: s3fs hands botocore's on as they are.
            raise StoreUnavailable(f"{self._root}: cannot be written: {error}") from error

    def replace(self, dataset: Dataset) -> None:
        """Store a dataset in place of the one of its name, as an erasure left it.

        Its files are staged whole before the first is moved, so that `read` can finish what was
        cut short.

        Raises:
            StoreUnavailable: the storage refused it.

        """
        try:
            filesystem, root = _locate(f"{self._root}/{dataset.manifest.dataset_id}")
            staged = f"{root}/{STAGED}"
            filesystem.makedirs(staged, exist_ok=True)
            for name, data in dataset.files.items():
                filesystem.pipe_file(f"{staged}/{name}", data)
            filesystem.pipe_file(f"{staged}/.{MANIFEST}", dataset.manifest.encode())
            filesystem.mv(f"{staged}/.{MANIFEST}", f"{staged}/{MANIFEST}")
            _move_staged(filesystem, root)
        except Exception as error:
            raise StoreUnavailable(f"{self._root}: cannot be written: {error}") from error

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
            _move_staged(filesystem, root)
            manifest = _read_manifest(filesystem, f"{root}/{MANIFEST}")
            files = {name: bytes(filesystem.cat_file(f"{root}/{name}")) for name in manifest.files}
        except Exception as error:
            raise StoreUnavailable(f"{self._root}/{dataset_id}: cannot be read: {error}") from error
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
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
            manifests = [_read_manifest(filesystem, path) for path in sorted(found)]
        except Exception as error:
            raise StoreUnavailable(f"{self._root}: cannot be read: {error}") from error
        of_log = [
            manifest
            for manifest in manifests
            if (manifest.model, manifest.method, manifest.origin) == (model, method, "log")
        ]
        return sorted(of_log, key=lambda manifest: sum(manifest.offsets.values()))


def _read_manifest(filesystem: Any, path: str) -> Manifest:
    """A stored manifest under the name of its folder."""
    return Manifest.model_validate_json(filesystem.cat_file(path)).under(path.split("/")[-2])


def _move_staged(filesystem: Any, root: str) -> None:
    """Move the files of a whole staged dataset into place, its manifest last."""
    staged = f"{root}/{STAGED}"
    if not filesystem.exists(f"{staged}/{MANIFEST}"):
        return
    for name in (*FILES, MANIFEST):
        if filesystem.exists(f"{staged}/{name}"):
            filesystem.mv(f"{staged}/{name}", f"{root}/{name}")


def read_import(uri: str, roots: Collection[str], *, strict: bool = False) -> ImportedRows:
    """The bytes of a JSONL file below one of the roots (paths or fsspec URIs).

    Raises:
        BadDataset: it lies elsewhere, there is no such file, or it is too large.
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
        return ImportedRows(uri, bytes(filesystem.cat_file(path)), strict=strict)
    except (FileNotFoundError, IsADirectoryError):
        raise BadDataset(f"dataset_uri: {uri} is no file; give the URI of a JSONL file") from None
    except (ValueError, ImportError) as error:
        raise BadDataset(f"dataset_uri: {uri}: {error}") from error
    except BadDataset:
        raise
    except Exception as error:
        raise StoreUnavailable(f"{uri}: cannot be read: {error}") from error


def store_files(uri: str, files: Mapping[str, bytes]) -> None:
    """Write some files into a folder, over older ones of the same names.

    Raises:
        StoreUnavailable: the storage refused them.

    """
    try:
        filesystem, root = _locate(uri)
        filesystem.makedirs(root, exist_ok=True)
        for name, data in files.items():
            filesystem.pipe_file(f"{root}/{name}", data)
    except Exception as error:
        raise StoreUnavailable(f"{uri}: cannot be written: {error}") from error


def lay_out(dataset: Dataset, folder: Path) -> None:
    """Write a dataset's files where a trainer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in dataset.files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(data)
        partial.replace(folder / name)
    (folder / MANIFEST).write_bytes(dataset.manifest.encode())


def _locate(uri: str) -> tuple[Any, str]:
    filesystem, root = cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]
    return filesystem, root.rstrip("/")
