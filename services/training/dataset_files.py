"""Files of a dataset on this machine, in files without a name: read by line, never held whole."""

# pyright: strict
from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from pydantic import BaseModel, ConfigDict

from services.training.spill import ScratchFile

CHUNK_BYTES = 1024 * 1024


class FileRef(BaseModel):
    """One file of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    rows: int
    bytes: int


class FileLines(Collection[bytes]):
    """Lines of a file, with their ends, read again any number of times."""

    def __init__(self, file: ScratchFile) -> None:
        self._file = file

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[bytes]:
        with self._file.reader() as reader:
            yield from reader

    def __contains__(self, line: object) -> bool:
        return any(line == one for one in self)


class DataFiles(Mapping[str, bytes]):
    """A dataset's files by name. As a mapping it gives a file's bytes whole: for small ones."""

    def __init__(self, contents: Mapping[str, Iterable[bytes]] = {}) -> None:
        """Write the files from their lines, or from chunks of them.

        Raises:
            DiskFull: there is no room.

        """
        self._files: dict[str, ScratchFile] = {}
        self._refs: dict[str, FileRef] = {}
        for name, chunks in contents.items():
            file, digest, rows = ScratchFile(), hashlib.sha256(), 0
            for chunk in chunks:
                file.append(chunk)
                digest.update(chunk)
                rows += chunk.count(b"\n")
            self._files[name] = file
            self._refs[name] = FileRef(sha256=digest.hexdigest(), rows=rows, bytes=file.size)

    def __getitem__(self, name: str) -> bytes:
        file = self._files[name]
        return file.read(0, file.size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def refs(self) -> dict[str, FileRef]:
        """Hash, rows and bytes of each file."""
        return dict(self._refs)

    def lines(self, name: str) -> Collection[bytes]:
        """Lines of a file; none where the dataset has no such file."""
        return FileLines(self._files[name]) if name in self._files else []

    def all_lines(self) -> dict[str, Iterable[bytes]]:
        """Lines of each file."""
        return {name: FileLines(file) for name, file in self._files.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes, some at a time."""
        with self._files[name].reader() as reader:
            while chunk := reader.read(CHUNK_BYTES):
                yield chunk
