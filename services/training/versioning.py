"""Version names: `<model>-v<major>.<minor>`; a name is never used twice. Pure."""

# pyright: strict
from __future__ import annotations

import re
from collections.abc import Collection

from services.training.errors import refusals
from shared.contracts.events.training import TrainingMethod
from shared.registry.job_origin import require_free_name


def choose_name(
    model: str, method: TrainingMethod, *, wanted: str, parent: str, taken: Collection[str]
) -> str:
    """The name of the version a job makes.

    SFT begins a major version (v1.0 first); DPO is the next minor one of its parent's major.

    Args:
        model: The name clients ask for.
        method: How the version is made.
        wanted: A name asked for, or empty.
        parent: The version it goes on from, or empty.
        taken: Every name of the registry.

    Raises:
        InvalidJob: the wanted name is taken or not fit for a folder.

    """
    if wanted:
        with refusals():
            require_free_name(wanted, model, taken)
        return wanted
    known = sorted(number for name in taken if (number := _number(model, name)) is not None)
    major_before = known[-1][0] if known else 0
    if method is TrainingMethod.sft:
        return f"{model}-v{major_before + 1}.0"
    of_parent = _number(model, parent)
    major = of_parent[0] if of_parent else max(major_before, 1)
    minor = max((number[1] for number in known if number[0] == major), default=0) + 1
    return f"{model}-v{major}.{minor}"


def _number(model: str, name: str) -> tuple[int, int] | None:
    """(major, minor) of a name of this model, or None for any other name."""
    found = re.fullmatch(rf"{re.escape(model)}-v(\d{{1,9}})\.(\d{{1,9}})", name)
    return (int(found[1]), int(found[2])) if found else None
