"""Queries of the read model. Each opens the file, reads one state of it and closes it again."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from services.feedback.errors import ReadModelBusy, ReadModelUnavailable
from services.feedback.read_model.changes import TAG_MARK
from services.feedback.read_model.listing import ExampleFilter, ExampleOrder, ExamplePlace
from services.feedback.read_model.schema import open_for_reading
from services.feedback.read_model.store import INTERACTION

T = TypeVar("T")

THREADS = 4
MAX_WAITING = 64
"""Queries that run or wait for a thread; more are refused."""
QUERY_TIMEOUT_S = 10.0
STEPS_PER_CHECK = 10_000
"""SQLite instructions between two looks at the deadline."""


class FoundExample(NamedTuple):
    """One example of a page: its place, and its event as JSON."""

    place: ExamplePlace
    body: str


class FoundPage(NamedTuple):
    """Examples in the order of their listing, and whether there are more behind them."""

    examples: list[FoundExample]
    more: bool


class FoundRevision(NamedTuple):
    """One revision of a feedback, as its event."""

    trace_id: str
    revision: int
    received_us: int
    type: str
    withdrawn: bool
    body: str


class FoundProduct(NamedTuple):
    """A pair or unpaired example, and where the log has it."""

    name: str
    partition: int
    offset: int
    retracted_offset: int | None
    retracted_us: int | None
    retracted_reason: str | None
    suspicion: str | None
    body: str


class FoundFeedback(NamedTuple):
    """What the read model has of one feedback id."""

    revisions: list[FoundRevision]
    examples: dict[str, str]
    """Joined row by trace_id."""
    products: list[FoundProduct]


class TraceLoad(NamedTuple):
    """What a trace holds."""

    sizes: Mapping[str, int]
    """Bytes of the newest event of each feedback."""
    interaction_bytes: int

    @property
    def feedback_ids(self) -> AbstractSet[str]:
        """Its feedbacks."""
        return self.sizes.keys()

    @property
    def bytes(self) -> int:
        """Of its interaction's texts and its feedback."""
        return self.interaction_bytes + sum(self.sizes.values())


class ReadModelQueries:
    """Reads the file in threads of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read-model")
        self._waiting = 0

    async def feedback(self, tenant: str, feedback_id: str, trace_id: str) -> FoundFeedback:
        """All that is known of a feedback id, of one trace where `trace_id` is not empty.

        Raises:
            ReadModelBusy, ReadModelUnavailable: as for every query.

        """
        return await self._run(lambda read: _feedback(read, tenant, feedback_id, trace_id))

    async def page(
        self,
        tenant: str,
        wanted: ExampleFilter,
        after: ExamplePlace | None,
        *,
        limit: int,
        max_bytes: int,
    ) -> FoundPage:
        """Examples behind `after`: at most `limit`, and no further one beyond `max_bytes`.

        Raises:
            ReadModelBusy, ReadModelUnavailable: as for every query.

        """
        return await self._run(lambda read: _page(read, tenant, wanted, after, limit, max_bytes))

    async def trace_load(self, tenant: str, trace_id: str) -> TraceLoad:
        """What a trace holds by now.

        Raises:
            ReadModelBusy, ReadModelUnavailable: as for every query.

        """
        return await self._run(lambda read: _trace_load(read, tenant, trace_id))

    async def loaded_traces(self, limit: int) -> frozenset[tuple[str, str]]:
        """(tenant, trace_id) of traces whose next feedback may be one too many, the last of them.

        Raises:
            ReadModelBusy, ReadModelUnavailable: as for every query.

        """
        query = "SELECT tenant, trace_id FROM loaded_traces ORDER BY stored_ms DESC LIMIT ?"
        return await self._run(
            lambda read: frozenset((row[0], row[1]) for row in read.execute(query, (limit,)))
        )

    def close(self) -> None:
        """End the threads; queries that run end at their deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise ReadModelBusy("too many queries at one time; send it again", retry_after_s=1)
        self._waiting += 1
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._query, query)
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise ReadModelBusy(
                    f"the query took longer than {QUERY_TIMEOUT_S:g} s; narrow it by time",
                    retry_after_s=1,
                ) from None
            raise _unavailable(error) from error
        except sqlite3.DatabaseError as error:
            raise _unavailable(error) from error
        finally:
            self._waiting -= 1

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        deadline = time.monotonic() + QUERY_TIMEOUT_S
        with contextlib.closing(open_for_reading(self._path)) as read:
            read.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_PER_CHECK)
            read.execute("BEGIN")
            return query(read)


def _unavailable(error: sqlite3.Error) -> ReadModelUnavailable:
    return ReadModelUnavailable(
        f"the read model cannot be read now ({error}); it is folded from the log, try again",
        retry_after_s=5,
    )


def _feedback(
    read: sqlite3.Connection, tenant: str, feedback_id: str, trace_id: str
) -> FoundFeedback:
    revisions = [
        FoundRevision(*row)
        for row in read.execute(
            "SELECT trace_id, revision, received_us, type, withdrawn, body FROM revisions "
            "WHERE tenant = ? AND feedback_id = ? AND (? = '' OR trace_id = ?) "
            "ORDER BY received_us, revision",
            (tenant, feedback_id, trace_id, trace_id),
        )
    ]
    examples = dict(
        row
        for trace in {one.trace_id for one in revisions}
        for row in read.execute(
            "SELECT name, body FROM documents WHERE tenant = ? AND source = 'example' AND name = ?",
            (tenant, trace),
        )
    )
    products = [
        FoundProduct(*row)
        for row in read.execute(
            "SELECT documents.name, partition, offset, retracted_offset, retracted_us, "
            "retracted_reason, suspicions.reason, body "
            "FROM causes JOIN documents ON documents.id = causes.document "
            "LEFT JOIN suspicions ON suspicions.tenant = documents.tenant "
            "AND suspicions.name = documents.name "
            "WHERE causes.tenant = ? AND causes.feedback_id = ? ORDER BY documents.id LIMIT 1000",
            (tenant, feedback_id),
        )
    ]
    return FoundFeedback(revisions, examples, products)


def _page(
    read: sqlite3.Connection,
    tenant: str,
    wanted: ExampleFilter,
    after: ExamplePlace | None,
    limit: int,
    max_bytes: int,
) -> FoundPage:
    since, until = wanted.bounds_us()
    terms = ["e.tenant = ?", "e.kind = ?", "e.at_us BETWEEN ? AND ?"]
    values: list[Any] = [tenant, wanted.kind.value, since, until]
    if wanted.version:
        terms.append("? IN (e.version, e.other_version)")
        values.append(wanted.version)
    for name in ("category", "segment", "locale"):
        if value := getattr(wanted, name):
            terms.append(f"e.{name} = ?")
            values.append(value)
    if wanted.tag:
        terms.append("instr(e.tags, ?)")
        values.append(TAG_MARK + wanted.tag + (TAG_MARK if "=" in wanted.tag else "="))
    newest = wanted.order is ExampleOrder.newest
    if after is not None:
        terms.append(f"(e.at_us, e.name) {'<' if newest else '>'} (?, ?)")
        values += after
    way = "DESC" if newest else "ASC"
    rows = read.execute(
        "SELECT e.at_us, e.name, d.body FROM entries e JOIN documents d ON d.id = e.document "
        f"WHERE {' AND '.join(terms)} ORDER BY e.at_us {way}, e.name {way} LIMIT ?",
        (*values, limit + 1),
    )
    found: list[FoundExample] = []
    taken = 0
    for at_us, name, body in rows:
        taken += len(body)
        if len(found) == limit or (found and taken > max_bytes):
            return FoundPage(found, more=True)
        found.append(FoundExample(ExamplePlace(at_us, name), body))
    return FoundPage(found, more=False)


def _trace_load(read: sqlite3.Connection, tenant: str, trace_id: str) -> TraceLoad:
    rows = read.execute(
        "SELECT feedback_id, bytes FROM traces WHERE tenant = ? AND trace_id = ?",
        (tenant, trace_id),
    ).fetchall()
    sizes: dict[str, int] = dict(rows)
    return TraceLoad(sizes, sizes.pop(INTERACTION, 0))
