"""Media store: bytes of pictures, audio and files that people sent, by tenant, person and digest.

Under an fsspec root, `tenant=<name>/person=<subject>/<sha256>`; the subject is that of erasures, and
`nobody` where a request names no user. An event's content parts have the digests. An erasure leaves
`tenant=<name>/erased/person=<subject>` with its time, for what a router writes after it.
"""

# pyright: strict
from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote

import fsspec  # pyright: ignore[reportMissingTypeStubs]

NOBODY = "nobody"
_DIGEST = re.compile("[0-9a-f]{64}")


class MediaUnavailable(Exception):
    """The storage refused what was asked of it."""


class MediaStore:
    """Media under an fsspec root. Calls block; run them in a thread."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

    def put(
        self, tenant: str, subject: str, sha256: str, data: bytes, *, sent_at: datetime
    ) -> bool:
        """Store bytes under their digest; returns whether they were not there yet.

        What was sent before its person's last erasure is not kept, whenever it is written.

        Raises:
            MediaUnavailable: the storage refused it.

        """
        try:
            filesystem, folder = self._folder(tenant, subject or NOBODY)
            if filesystem.exists(f"{folder}/{sha256}"):
                return False
            # A file that was cut short must not have the digest as its name.
            part = f"{folder}/.{uuid.uuid4().hex}"
            filesystem.makedirs(folder, exist_ok=True)
            filesystem.pipe_file(part, data)
            filesystem.mv(part, f"{folder}/{sha256}")
            # After the write: an erasure leaves its mark first, so that one of the two deletes it.
            if subject and sent_at <= _erased_at(filesystem, folder):
                filesystem.rm(f"{folder}/{sha256}")
                return False
        except Exception as error:
            raise MediaUnavailable(f"{self._root}: cannot be written: {error}") from error
        return True

    def erase(self, tenant: str, subject: str) -> None:
        """Delete all that a person sent until now, and what of it is written later.

        Raises:
            MediaUnavailable: the storage refused it.
            ValueError: the subject is no digest.

        """
        if not _DIGEST.fullmatch(subject):
            raise ValueError(f"{subject!r} is no subject of an erasure")
        try:
            filesystem, folder = self._folder(tenant, subject)
            mark = _mark(folder)
            filesystem.makedirs(mark.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(mark, datetime.now(UTC).isoformat().encode())
            filesystem.invalidate_cache(folder)
            if filesystem.exists(folder):
                filesystem.rm(folder, recursive=True)
        except Exception as error:
            raise MediaUnavailable(f"{self._root}: cannot be erased: {error}") from error

    def _folder(self, tenant: str, person: str) -> tuple[Any, str]:
        """The filesystem, and a person's folder in it."""
        uri = f"{self._root}/tenant={quote(tenant, safe='')}/person={person}"
        return cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]


def _mark(folder: str) -> str:
    """The file that says when a person was erased last, beside the person's folder."""
    parent, _, person = folder.rpartition("/")
    return f"{parent}/erased/{person}"


def _erased_at(filesystem: Any, folder: str) -> datetime:
    try:
        return datetime.fromisoformat(filesystem.cat_file(_mark(folder)).decode())
    except FileNotFoundError:
        return datetime.min.replace(tzinfo=UTC)
