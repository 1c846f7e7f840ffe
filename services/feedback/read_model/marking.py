"""Marking of suspicious training data in the read model: all that stands is looked at anew.

What is marked is what training leaves out by the default rules; the marks are those of
`shared.rater_marks`, over the rows that the read model keeps.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from datetime import datetime

import orjson

from shared.rater_marks import RaterChoice, RaterRules, suspicions

_STANDING = (
    "SELECT tenant, name, json_extract(body, '$.model'), json_extract(body, '$.raters'), "
    "json_extract(body, '$.created_at'), json_extract(body, '$.chosen_side'), "
    "json_extract(body, '$.chosen_version'), json_extract(body, '$.rejected_version') "
    "FROM documents WHERE source = 'product' AND retracted_offset IS NULL"
)


def mark_products(connection: sqlite3.Connection, rules: RaterRules) -> int:
    """Replace all marks in one transaction; returns how many there are.

    Raises:
        sqlite3.Error: the marks are as they were.

    """
    choices: defaultdict[str, list[RaterChoice]] = defaultdict(list)
    tenants: dict[str, str] = {}
    for tenant, name, model, raters, created_at, side, chosen, rejected in connection.execute(
        _STANDING
    ):
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
    marks = [
        (tenants[name], name, reason.value)
        for of_model in choices.values()
        for name, reason in suspicions(of_model, rules).items()
    ]
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DELETE FROM suspicions")
        connection.executemany("INSERT OR REPLACE INTO suspicions VALUES (?, ?, ?)", marks)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return len(marks)
