"""Durable store of evidence: one file per rollout, replaced atomically."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import structlog
from pydantic import ValidationError

from services.rollout.evidence import RolloutEvidence

log = structlog.get_logger(__name__)

KEPT = 50
"""Files kept beside those of unfinished rollouts."""


class EvidenceStore:
    """A directory of evidence files. Calls block for a disk write; run them in a thread.

    A rollout is judged by the evidence in memory: what the disk refuses is lost only to a restart,
    which goes on from an older file, or from the last decision, and counts a longer slice.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, rollout_id: str) -> RolloutEvidence | None:
        """The evidence of a rollout; None where there is none, or one that cannot be read."""
        path = self._path(rollout_id)
        try:
            evidence = RolloutEvidence.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("evidence.unreadable", rollout_id=rollout_id, error=str(error))
            return None
        return evidence if evidence.rollout_id == rollout_id else None

    def save(self, evidence: RolloutEvidence) -> bool:
        """Replace a rollout's evidence; False where the disk refused it.

        After that, and after a crash, there is the old or the new one.
        """
        path = self._path(evidence.rollout_id)
        partial = path.with_suffix(".partial")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(evidence.model_dump_json(exclude_defaults=True).encode())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            log.warning("evidence.not_saved", rollout_id=evidence.rollout_id, error=str(error))
            return False
        return True

    def tidy(self, unfinished: Collection[str]) -> None:
        """Delete all but the newest files and those of these rollouts.

        One that the disk keeps is tried the next time.
        """
        needed = {self._path(rollout_id) for rollout_id in unfinished}
        try:
            others = set(self._directory.glob("*.json")) - needed
            for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("evidence.not_tidied", error=str(error))

    def _path(self, rollout_id: str) -> Path:
        return self._directory / f"{hashlib.sha256(rollout_id.encode()).hexdigest()[:32]}.json"
