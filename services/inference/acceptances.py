"""Acceptances: persisted approvals of adapters whose fingerprint is close to another's."""

from __future__ import annotations

from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from services.inference.errors import AcceptanceNotKept
from shared.contracts.events.base import Identifier

MAX_KEPT = 1000


class Acceptance(BaseModel):
    """Approval by a person: a version may serve although its fingerprint is close to others'."""

    model_config = ConfigDict(frozen=True)
    version: Identifier
    sha256: str
    neighbours: tuple[str, ...] = Field(description="whom it was too close to")
    actor: Identifier = Field(description="the id of the key that asked")
    on_behalf_of: str = Field(default="", max_length=200)
    reason: str = Field(min_length=1, max_length=2000)
    at: AwareDatetime


_KEPT = TypeAdapter(tuple[Acceptance, ...])


class Acceptances:
    """A small file of acceptances, the newest last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = _KEPT.validate_json(path.read_bytes()) if path.exists() else ()

    def of(self, version: str, sha256: str) -> frozenset[str]:
        """Whom this version (these very bytes) may be close to, by either one's acceptance."""
        named = [
            name
            for one in self._kept
            if one.version == version and one.sha256 == sha256
            for name in one.neighbours
        ]
        return frozenset(named) | {one.version for one in self._kept if version in one.neighbours}

    def add(self, acceptance: Acceptance) -> None:
        """Keep an acceptance, on disk before this returns.

        Raises:
            AcceptanceNotKept: the disk refused it; those of before stay.

        """
        kept = (*self._kept, acceptance)[-MAX_KEPT:]
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(_KEPT.dump_json(kept, indent=1))
            fresh.replace(self._path)
        except OSError as error:
            raise AcceptanceNotKept(
                f"the acceptance of {acceptance.version!r} could not be kept: {error.strerror}; "
                "make room on the data volume and accept it again"
            ) from error
        self._kept = kept
