"""Marking of suspicious training data in the read model: what stands is looked at anew.

What is marked is what training leaves out by the default rules; the marks are those of
`shared.rater_marks`, over the newest rows that the read model keeps. Looking takes seconds, so it is
done over a connection of its own, in a thread, while folding goes on; applying writes only what
changed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from services.feedback.read_model.schema import open_for_reading
from shared.rater_marks import RaterChoice, RaterRules, suspicions

MAX_LOOKED_AT: Final = 200_000
"""Newest pairs and examples that are looked at: about 100 MB and some seconds."""
LOOK_TIMEOUT_S: Final = 30.0
STEPS_PER_CHECK: Final = 10_000
"""SQLite instructions between two looks at the deadline."""
_STANDING = (
    "SELECT tenant, name, json_extract(body, '$.model'), json_extract(body, '$.raters'), "
    "json_extract(body, '$.created_at'), json_extract(body, '$.chosen_side'), "
    "json_extract(body, '$.chosen_version'), json_extract(body, '$.rejected_version') "
    "FROM documents WHERE source = 'product' AND retracted_offset IS NULL "
    "ORDER BY stored_ms DESC LIMIT ?"
)


class SuspicionMark(NamedTuple):
    """A pair or example and why it is suspicious: a row of `suspicions`."""

    tenant: str
    name: str
    reason: str


class MarkChanges(NamedTuple):
    """What a look found to be different from the marks that are stored."""

    new: frozenset[SuspicionMark]
    gone: frozenset[SuspicionMark]


def look_for_marks(
    path: Path, rules: RaterRules, *, timeout_s: float = LOOK_TIMEOUT_S
) -> MarkChanges:
    """Compare what stands with the stored marks; reads one state of the file.

    Raises:
        sqlite3.Error: the file cannot be read, or reading took longer than `timeout_s` seconds.

    """
    deadline = time.monotonic() + timeout_s
    with contextlib.closing(open_for_reading(path)) as read:
        read.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_PER_CHECK)
        read.execute("BEGIN")
        choices, tenants = _standing(read)
        stored = frozenset(
            SuspicionMark(*row)
            for row in read.execute("SELECT tenant, name, reason FROM suspicions")
        )
    found = frozenset(
        SuspicionMark(tenants[name], name, reason.value)
        for of_model in choices.values()
        for name, reason in suspicions(of_model, rules).items()
    )
    return MarkChanges(new=found - stored, gone=stored - found)


def apply_marks(connection: sqlite3.Connection, changes: MarkChanges) -> None:
    """Write what a look found, in one transaction.

    Raises:
        sqlite3.Error: the marks are as they were.

    """
    if not (changes.new or changes.gone):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(
            "DELETE FROM suspicions WHERE tenant = ? AND name = ? AND reason = ?", changes.gone
        )
        connection.executemany("INSERT OR REPLACE INTO suspicions VALUES (?, ?, ?)", changes.new)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _standing(
    read: sqlite3.Connection,
) -> tuple[dict[str, list[RaterChoice]], dict[str, str]]:
    """Choices of one rater each by model, and the tenant of each."""
    choices: defaultdict[str, list[RaterChoice]] = defaultdict(list)
    tenants: dict[str, str] = {}
    rows = read.execute(_STANDING, (MAX_LOOKED_AT,))
    for tenant, name, model, raters, created_at, side, chosen, rejected in rows:
        names = orjson.loads(raters or "[]")
        if len(names) != 1:
            continue
        tenants[name] = tenant
        choices[model].append(
            RaterChoice(
                name=name,
                rater=f"{tenant}/{names[0]}",
                at=datetime.fromisoformat(created_at),
                side=side or "",
                chosen_version=chosen or "",
                rejected_version=rejected or "",
            )
        )
    return choices, tenants
