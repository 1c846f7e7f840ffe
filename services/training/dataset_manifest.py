"""A dataset: its manifest, and the files that the manifest speaks of. Immutable.

Nothing in the manifest depends on the time or the machine, so a rebuild from the same offsets is
the same bytes.
"""

# pyright: strict
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, NamedTuple, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.training.dataset import TENANT, card_of
from services.training.dataset_files import DataFiles, FileRef
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    LEFT_OUT,
    PROMPTS,
    TRAIN,
    LeftOut,
    Row,
    canonical_lines,
)
from services.training.errors import BadDataset
from services.training.sides import OF_THEIR_TIME, DatasetRules
from services.training.spill import made
from shared.contracts.events.base import ModelName
from shared.contracts.events.preferences import ERASED
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import DatasetRef

FILES = (TRAIN, HELDOUT, JUDGE, PROMPTS, LEFT_OUT)
MOST_VALUES = 40
"""Values of a card's part that a version's record has; a segment may have thousands."""
OTHERS = "(others)"
"""What the record counts the other values as."""


class FilePlace(NamedTuple):
    """A line of a dataset's file, counted from 1."""

    file: str
    line: int


def _is_empty(value: object) -> bool:
    return not value


class Manifest(BaseModel):
    """What a dataset is: its origin, checks, counts, card and the hashes of its files."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    model: ModelName
    method: TrainingMethod
    labelled: bool = Field(default=False, description="rows are single answers, good or bad")
    origin: Literal["log", "import"]
    source: str = ""
    source_sha256: str = ""
    offsets: dict[str, int]
    rules: DatasetRules
    refused: dict[str, int]
    retracted: int
    card: dict[str, dict[str, int]]
    files: dict[str, FileRef]
    erased_from: str = Field(
        default="",
        exclude_if=_is_empty,
        description="the dataset's id before an erasure took rows out; it stays its name",
    )
    stored_as: str = Field(
        default="",
        exclude=True,
        description="its name in storage where that does not follow: a rule of today is no part of "
        "the hash of an older manifest",
    )
    stored_sha256: str = Field(
        default="",
        exclude=True,
        description="of the bytes it was read from, where this release writes it with more fields: "
        "the hash that a record and a report have of it",
    )

    @field_validator("rules", mode="before")
    @classmethod
    def _rules_of_their_time(cls, value: object) -> object:
        """A rule that a manifest does not name was not there when it was written."""
        if not isinstance(value, dict):
            return value
        return {**OF_THEIR_TIME, **cast("dict[str, object]", value)}

    @field_validator("files")
    @classmethod
    def _known_files(cls, value: dict[str, FileRef]) -> dict[str, FileRef]:
        """A manifest is read back from storage, and the names in it become paths."""
        unknown = sorted(set(value) - set(FILES))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no file of a dataset; known are {FILES}")
        return value

    @classmethod
    def read(cls, stored: bytes, name: str) -> Manifest:
        """A stored manifest with the name and the hash it is known by, whichever release wrote it."""
        known = cls.model_validate_json(stored)
        digest = hashlib.sha256(stored).hexdigest()
        if digest != known.sha256:
            known = known.model_copy(update={"stored_sha256": digest})
        return known.under(name)

    def encode(self) -> bytes:
        """The manifest as this release stores it: equal manifests are equal bytes."""
        value = self.model_dump(mode="json")
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"

    @property
    def sha256(self) -> str:
        """The dataset's hash: over the manifest, and so over every file, offset and rule."""
        return self.stored_sha256 or hashlib.sha256(self.encode()).hexdigest()

    @property
    def dataset_id(self) -> str:
        """The dataset's name; it follows from the hash at first writing, before any erasure."""
        name = self.stored_as or self.erased_from
        return name or f"{self.model}-{self.method.value}-{self.sha256[:16]}"

    def under(self, name: str) -> Manifest:
        """The manifest as that of a dataset of this name, whichever release wrote it."""
        named = self.model_copy(update={"stored_as": ""})
        return named if named.dataset_id == name else named.model_copy(update={"stored_as": name})

    def changed(self, **fields: Any) -> Manifest:
        """The manifest with other values in these fields, and so with a hash of its own."""
        return self.model_copy(update={**fields, "stored_sha256": ""})


@dataclass(frozen=True)
class Dataset:
    """A manifest with the bytes it speaks of."""

    manifest: Manifest
    files: DataFiles
    traceparents: Sequence[str] = field(default=(), compare=False)
    """Spans of some sampled pairs that were read for it; none where it was read from storage."""

    def reference(self, root: str) -> DatasetRef:
        """What a version's record says of its data."""
        manifest = self.manifest
        return DatasetRef(
            dataset_id=manifest.dataset_id,
            uri=f"{root.rstrip('/')}/{manifest.dataset_id}",
            sha256=manifest.sha256,
            rows=manifest.files[TRAIN].rows,
            refused=manifest.refused,
            offsets=manifest.offsets,
            tenants=manifest.card.get(TENANT, {}),
            splits={name.removesuffix(".jsonl"): one.rows for name, one in manifest.files.items()},
            card={name: _most_frequent(counts) for name, counts in manifest.card.items()},
            rules=manifest.rules.model_dump(mode="json"),
        )

    def rows(self, name: str) -> Collection[Row]:
        """Rows of a file, read whenever they are asked for."""
        return made(self.files.lines(name), lambda line: (orjson.loads(line),))

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Rows that are not in the dataset for what is in them; older datasets have no such file."""
        return tuple(self.left_out_rows())

    def left_out_rows(self) -> Iterator[LeftOut]:
        """Those of `left_out`, one at a time."""
        return map(LeftOut.model_validate_json, self.files.lines(LEFT_OUT))

    def without(self, rows: Iterable[LeftOut]) -> Dataset:
        """The dataset without some of its rows, which are counted and kept by line and reason.

        Raises:
            BadDataset: nothing is left to train on.

        """
        left = list(rows)
        if not left:
            return self
        dataset = self._without({FilePlace(row.file, row.line) for row in left}, left)
        require_rows(dataset)
        return dataset

    def erase(self, places: AbstractSet[FilePlace]) -> Dataset:
        """The dataset after an erasure: under its own name, and maybe with nothing left.

        The lines are those of the files as they are; those that are kept on record count from
        before the first erasure, so that a rebuild leaves out the same rows.
        """
        before = {
            name: sorted(
                row.line for row in self.left_out if (row.file, row.reason) == (name, ERASED)
            )
            for name in FILES
        }
        left = [
            LeftOut(file=name, line=_counted_with(before[name], line), reason="erased", detail="")
            for name, line in places
        ]
        dataset = self._without(places, left)
        # In one order whether several erasures took the rows or one, as a rebuild does.
        rows = sorted(dataset.left_out, key=_by_erasure)
        files = DataFiles({**dataset.files.all_lines(), LEFT_OUT: left_out_lines(rows)})
        manifest = dataset.manifest.changed(erased_from=self.manifest.dataset_id, files=files.refs)
        return Dataset(manifest, files)

    def _without(self, gone: AbstractSet[FilePlace], left: Iterable[LeftOut]) -> Dataset:
        left = sorted(left, key=lambda row: (FILES.index(row.file), row.line))
        contents: dict[str, Iterable[bytes]] = {
            name: _lines_without(name, lines, gone)
            for name, lines in self.files.all_lines().items()
        }
        contents[LEFT_OUT] = chain(contents[LEFT_OUT], left_out_lines(left))
        files = DataFiles(contents)
        refused = Counter(self.manifest.refused) + Counter(row.counted_as for row in left)
        train = map(orjson.loads, files.lines(TRAIN))
        raters = self.manifest.card["counts"]["raters"]
        manifest = self.manifest.changed(
            refused=dict(sorted(refused.items())),
            card=card_of(train, raters=raters, rules=self.manifest.rules),
            files=files.refs,
        )
        return replace(self, manifest=manifest, files=files)


def _most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """The values with the highest counts, and how many rows have another one."""
    ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    others = sum(count for _, count in ranked[MOST_VALUES:])
    return dict(ranked[:MOST_VALUES]) | ({OTHERS: others} if others else {})


def _by_erasure(row: LeftOut) -> tuple[int, int]:
    """Sorts erased rows behind the others, by file and line; the others stay in their order."""
    return (1 + FILES.index(row.file), row.line) if row.reason == ERASED else (0, 0)


def _counted_with(gone: Sequence[int], line: int) -> int:
    """The number that a line had before those of these numbers went, which are in order."""
    for before in gone:
        line += before <= line
    return line


def _lines_without(
    name: str, lines: Iterable[bytes], gone: AbstractSet[FilePlace]
) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=1):
        if FilePlace(name, number) not in gone:
            yield line


def left_out_lines(rows: Iterable[LeftOut]) -> Iterator[bytes]:
    """Lines of the file with the rows that are not in a dataset."""
    return canonical_lines(row.model_dump() for row in rows)


def require_rows(dataset: Dataset) -> None:
    """Check that there is something to train on.

    Raises:
        BadDataset: there is nothing; says why, and what to do.

    """
    manifest = dataset.manifest
    trained_on = JUDGE if manifest.method is TrainingMethod.reward else TRAIN
    if manifest.files[trained_on].rows:
        return
    why = ", ".join(f"{count} {name}" for name, count in manifest.refused.items())
    first = next((f"; for example {row}" for row in dataset.left_out_rows()), "")
    raise BadDataset(
        f"dataset: no rows to train {manifest.model} on by {manifest.method.value}"
        f"{f' (left out: {why}{first})' if why else ''}; {_remedy(manifest.refused)}"
    )


def _remedy(refused: Mapping[str, int]) -> str:
    if refused.get("template"):
        return "the base's chat template must render the rows: change them, or take another base"
    if refused.get("too_long"):
        return "raise max_length and the engine's context, which it follows, or shorten the rows"
    return "collect feedback or give dataset_uri"
