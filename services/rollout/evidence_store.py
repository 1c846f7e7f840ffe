"""Durable store of evidence: one file per rollout, replaced atomically."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import structlog
from pydantic import ValidationError

from services.rollout.evidence import RolloutEvidence

log = structlog.get_logger(__name__)

KEPT = 50
"""Files kept; older ones are of rollouts that have long ended."""


class EvidenceStore:
    """A directory of evidence files. Calls block for a disk write; run them in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

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

    def save(self, evidence: RolloutEvidence) -> None:
        """Replace a rollout's evidence; after a crash there is the old or the new one.

        Raises:
            OSError: the disk refused it.

        """
        path = self._path(evidence.rollout_id)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(evidence.model_dump_json(exclude_defaults=True).encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def tidy(self) -> None:
        """Delete all but the newest files."""
        books = sorted(self._directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in books[:-KEPT]:
            path.unlink(missing_ok=True)

    def _path(self, rollout_id: str) -> Path:
        return self._directory / f"{hashlib.sha256(rollout_id.encode()).hexdigest()[:32]}.json"
