"""Base files of a training: which base it is, and whether the parent was trained on the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.training.errors import InvalidJob
from services.training.resolve import ResolvedJob
from services.training.settings import TrainingSettings
from shared.registry.base_models import (
    BaseIdentity,
    base_mismatch,
    base_problem,
    identify_base,
)

log = structlog.get_logger(__name__)


async def base_identity(
    base: str, settings: TrainingSettings, moved: Callable[[], None]
) -> BaseIdentity:
    """Revision and hash of the base; unknown where its files are not here or cannot be read.

    `moved` is called in a thread while files are read.
    """
    cache = settings.data_dir / "training" / "base-hashes.json"
    revision = settings.revision_of(base) or "main"
    try:
        return await asyncio.to_thread(identify_base, base, cache, revision, moved=moved)
    except OSError as error:
        log.warning("base.unreadable", base=base, error=str(error))
        return BaseIdentity()


def require_loadable(base: str) -> None:
    """Refuse a base that is seen not to load, before rows are taken for it.

    Raises:
        InvalidJob: says what it lacks and what to do.

    """
    if problem := base_problem(base):
        raise InvalidJob(problem)


async def require_parents_base(
    resolved: ResolvedJob, settings: TrainingSettings, moved: Callable[[], None]
) -> None:
    """Refuse to go on from a parent on other files: its LoRA would mean something else.

    Raises:
        InvalidJob: the base's files are not those that the parent was trained on.

    """
    parent = resolved.parent
    if parent is None or parent.base != resolved.base or not parent.base_sha256:
        return
    found = await base_identity(resolved.base, settings, moved)
    if wrong := base_mismatch(parent.base_sha256, found.sha256):
        raise InvalidJob(f"parent: {parent.version}: {wrong}")
