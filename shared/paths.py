"""Containment: paths and URIs from outside stay below the folder or root they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

LOCAL_SCHEMES = ("file", "local")


class OutsideRoot(ValueError):
    """A name or URI that leads out of where it belongs."""


def contained(root: Path, name: str) -> Path:
    """The path `root/name`, resolved, strictly below `root`.

    Args:
        root: A folder; need not exist yet.
        name: One or more relative segments, with `/` between them.

    Raises:
        OutsideRoot: `name` is empty or absolute, has an empty, `.` or `..` segment, a backslash
            or a control character, or a link on its way leads out of `root`.

    """
    if not name or not _plain(name.split("/")):
        raise OutsideRoot(f"{name!r}: is no plain relative path below {root.name}")
    base = root.resolve()
    path = (base / name).resolve()
    if base not in path.parents:
        raise OutsideRoot(f"{name!r}: leads out of {root.name}")
    return path


def contained_uri(uri: str, roots: Iterable[str]) -> str:
    """The URI as it is, if it lies strictly below one of the roots.

    Local roots and URIs (a path, `file://`, `local://`) are compared after links are resolved;
    all others by scheme, host and path segments. A chain of protocols (`zip::…`) is refused.

    Args:
        uri: A path or URI from a record or request.
        roots: Paths or URIs that may be read, such as `s3://bucket/adapters`.

    Raises:
        OutsideRoot: it lies elsewhere, or its path is not plain; names the roots.

    """
    allowed = list(roots)
    scheme, path = _split(uri)
    encoded = scheme not in LOCAL_SCHEMES and set("%?#") & set(path)
    if "::" in uri or encoded or not _plain(path.removeprefix("/").split("/")):
        raise OutsideRoot(
            f"{uri!r}: is no plain URI; chained protocols, encoded characters and empty, '.', '..' "
            "and '~' segments are refused"
        )
    for root in allowed:
        if _canonical(uri).startswith(_canonical(root).rstrip("/") + "/"):
            return uri
    raise OutsideRoot(f"{uri!r}: lies below none of the allowed roots ({', '.join(allowed)})")


def local_folder(uri: str) -> Path | None:
    """The folder that a root names: a path, `file://` or `local://`; none for stores elsewhere."""
    scheme, path = _split(uri)
    return Path(path) if path and scheme in LOCAL_SCHEMES and "::" not in uri else None


def _split(uri: str) -> tuple[str, str]:
    """Scheme, `file` for a path, and what follows it."""
    scheme, separator, rest = uri.partition("://")
    return (scheme.lower(), rest) if separator else ("file", uri)


def _plain(segments: Iterable[str]) -> bool:
    return all(
        segment not in ("", ".", "..")
        and not segment.startswith("~")
        and "\\" not in segment
        and not any(ord(letter) < 32 or ord(letter) == 127 for letter in segment)
        for segment in segments
    )


def _canonical(uri: str) -> str:
    scheme, rest = _split(uri)
    if scheme in LOCAL_SCHEMES:
        return f"file://{Path(os.path.realpath(rest)).as_posix()}"
    return f"{scheme}://{PurePosixPath(rest).as_posix()}"
