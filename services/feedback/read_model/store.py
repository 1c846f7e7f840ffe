"""Store of the read model: folds records into SQLite, with their offsets in the same transaction.

A process killed at any line leaves whole transactions: what was folded is behind the offset that is
stored with it, so nothing is lost and nothing is folded twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from services.feedback.read_model.changes import (
    VOTE,
    Change,
    DocumentStored,
    PersonForgotten,
    ProductRetracted,
    RevisionReceived,
    change_of,
)
from services.feedback.read_model.marking import apply_marks, look_for_marks
from services.feedback.read_model.schema import PAGE_BYTES, open_for_writing
from shared.contracts.events.feedback import MAX_FEEDBACKS, MAX_TRACE_BYTES
from shared.contracts.events.preferences import ERASED
from shared.contracts.subject import subject_of
from shared.kafka.envelope import UnreadableRecord
from shared.kafka.log import Positions, Record
from shared.rater_marks import RaterRules

log = structlog.get_logger(__name__)

MAX_REVISIONS: Final = 50
"""Newest revisions kept per feedback."""
PRUNE_ROWS: Final = 1_000
"""Rows deleted per transaction, so that a prune never delays a fold for long."""
LOADED_FEEDBACKS: Final = MAX_FEEDBACKS * 3 // 4
LOADED_BYTES: Final = MAX_TRACE_BYTES * 3 // 4
"""From here on a trace is listed as loaded: its next feedback may be one too many."""
INTERACTION: Final = ""
"""Stands for the interaction among the feedbacks of a trace; no feedback_id is empty."""
_AGED = ("revisions", "traces", "documents")


class LogReplaced(Exception):
    """A record lies before an offset that was folded: the topic was made anew or cut back."""


class ReadModelStore:
    """The writing side. Not for use by several threads."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._connection = open_for_writing(path)
        # Room for one batch above the limit that `prune` keeps to.
        pages = max_bytes * 5 // 4 // PAGE_BYTES
        self._connection.execute(f"PRAGMA max_page_count = {pages}")
        self.unreadable = 0
        self._products_changed = True
        self._erased = False
        """Something was erased since the write-ahead log was last emptied."""

    def close(self) -> None:
        """Close the file; an open transaction is rolled back."""
        self._connection.close()

    def positions(self) -> Positions:
        """Where folding goes on."""
        rows = self._connection.execute("SELECT topic, partition, next FROM offsets")
        return {(topic, partition): following for topic, partition, following in rows}

    def fold(self, records: Sequence[Record], *, not_before_ms: int) -> int:
        """Fold records in one transaction; returns how many changed rows.

        Records older than `not_before_ms` are passed over: retention would delete their rows.

        Raises:
            LogReplaced: a record's offset was folded already.
            sqlite3.Error: nothing was stored; the same records may be folded again.

        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            following = dict(self.positions())
            folded = 0
            for record in records:
                place = (record.topic, record.partition)
                if record.offset < following.get(place, 0):
                    raise LogReplaced(f"{record.topic}/{record.partition} at {record.offset}")
                following[place] = record.offset + 1
                if record.timestamp_ms < not_before_ms:
                    continue
                change = self._change(record)
                if change is not None:
                    self._apply(change, record)
                    folded += 1
            self._connection.executemany(
                "INSERT INTO offsets VALUES (?, ?, ?) "
                "ON CONFLICT (topic, partition) DO UPDATE SET next = excluded.next",
                [(*place, offset) for place, offset in following.items()],
            )
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if self._erased:  # the write-ahead log still holds the pages as they were
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._erased = False
        return folded

    def prune(self, *, not_before_ms: int) -> int:
        """Delete rows older than that, PRUNE_ROWS of a table at most; returns how many.

        Where the model is larger than its limit, the oldest rows go too.

        Raises:
            sqlite3.Error: nothing was deleted.

        """
        if self.is_full():
            not_before_ms = max(not_before_ms, self._age_of_oldest_tenth())
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            deleted = sum(self._delete_before(table, not_before_ms) for table in _AGED)
            self._connection.execute(
                "DELETE FROM loaded_traces WHERE stored_ms < ?", (not_before_ms,)
            )
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return deleted

    async def mark(self, rules: RaterRules) -> None:
        """Mark suspicious pairs and examples anew, where any came or went since the last time.

        What stands is read in a thread, while this store may be used.

        Raises:
            sqlite3.Error: the marks are as they were.

        """
        if not self._products_changed:
            return
        self._products_changed = False
        try:
            changes = await asyncio.to_thread(look_for_marks, self._path, rules)
            apply_marks(self._connection, changes)
        except BaseException:
            self._products_changed = True
            raise

    def is_full(self) -> bool:
        """Whether the model is larger than it may be, so that `prune` deletes the oldest rows."""
        return self.bytes_used() > self._max_bytes

    def bytes_used(self) -> int:
        """Bytes of the pages in use; deleted rows free pages inside the file."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return (pages - free) * PAGE_BYTES

    def oldest_ms(self) -> int | None:
        """When the oldest record whose rows are kept was stored in the log."""
        found = [
            self._connection.execute(f"SELECT min(stored_ms) FROM {table}").fetchone()[0]
            for table in _AGED
        ]
        return min((one for one in found if one is not None), default=None)

    def _change(self, record: Record) -> Change | None:
        if record.value is None:
            return None  # a tombstone: compaction's, as nobody writes them
        try:
            return change_of(record)
        except UnreadableRecord as error:
            self.unreadable += 1
            log.warning(
                "read_model.unreadable",
                topic=record.topic,
                offset=record.offset,
                error=error.detail,
            )
            return None

    def _apply(self, change: Change, record: Record) -> None:
        match change:
            case RevisionReceived():
                self._add_revision(change, record)
            case DocumentStored():
                self._put_document(change, record)
            case ProductRetracted():
                self._retract(change, record)
            case PersonForgotten():
                self._forget(change)

    def _add_revision(self, change: RevisionReceived, record: Record) -> None:
        place = (change.tenant, change.feedback_id, change.trace_id)
        self._connection.execute(
            "INSERT OR IGNORE INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *place,
                change.revision,
                change.received_us,
                change.withdrawn,
                change.type,
                record.timestamp_ms,
                change.body,
            ),
        )
        self._connection.execute(
            "DELETE FROM revisions WHERE rowid IN (SELECT rowid FROM revisions "
            "WHERE tenant = ? AND feedback_id = ? AND trace_id = ? "
            "ORDER BY received_us DESC, rowid DESC LIMIT -1 OFFSET ?)",
            (*place, MAX_REVISIONS),
        )
        if change.type != VOTE:
            size = len(record.value or b"")
            self._load_trace(change.tenant, change.trace_id, change.feedback_id, size, record)

    def _load_trace(
        self, tenant: str, trace_id: str, feedback_id: str, size: int, record: Record
    ) -> None:
        """Note what a feedback, or INTERACTION, takes of what can be kept of a trace."""
        self._connection.execute(
            "INSERT INTO traces VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, trace_id, feedback_id) "
            "DO UPDATE SET stored_ms = excluded.stored_ms, bytes = excluded.bytes",
            (tenant, trace_id, feedback_id, record.timestamp_ms, size),
        )
        self._connection.execute(
            "INSERT OR REPLACE INTO loaded_traces SELECT tenant, trace_id, ? FROM traces "
            "WHERE tenant = ? AND trace_id = ? GROUP BY tenant, trace_id "
            "HAVING count(*) >= ? OR sum(bytes) >= ?",
            (record.timestamp_ms, tenant, trace_id, LOADED_FEEDBACKS, LOADED_BYTES),
        )

    def _put_document(self, change: DocumentStored, record: Record) -> None:
        """Store a document in place of the one of its name; a repeat keeps its first offset."""
        (number,) = self._connection.execute(
            "INSERT INTO documents (tenant, source, name, stored_ms, partition, offset, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, source, name) DO UPDATE SET "
            "stored_ms = excluded.stored_ms, body = excluded.body, "
            "retracted_offset = NULL, retracted_us = NULL, retracted_reason = NULL RETURNING id",
            (
                change.tenant,
                change.source,
                change.name,
                record.timestamp_ms,
                record.partition,
                record.offset,
                change.body,
            ),
        ).fetchone()
        self._products_changed |= change.source == "product"
        if change.source == "example":
            self._load_trace(change.tenant, change.name, INTERACTION, change.text_bytes, record)
        self._connection.execute("DELETE FROM entries WHERE document = ?", (number,))
        version, other_version = (*change.versions, "", "")[:2]
        self._connection.executemany(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    change.tenant,
                    kind,
                    change.at_us,
                    change.name,
                    number,
                    version,
                    other_version,
                    change.category,
                    change.segment,
                    change.locale,
                    change.tags,
                )
                for kind in change.kinds
            ],
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO causes VALUES (?, ?, ?)",
            [(change.tenant, cause, number) for cause in change.causes],
        )

    def _retract(self, change: ProductRetracted, record: Record) -> None:
        found = self._connection.execute(
            "UPDATE documents SET retracted_offset = ?, retracted_us = ?, retracted_reason = ?, "
            "stored_ms = ? WHERE tenant = ? AND source = 'product' AND name = ? RETURNING id",
            (
                record.offset,
                change.at_us,
                change.reason,
                record.timestamp_ms,
                change.tenant,
                change.name,
            ),
        ).fetchone()
        self._products_changed = True
        if found is not None:
            self._connection.execute("DELETE FROM entries WHERE document = ?", found)
            if change.reason == ERASED:
                self._delete_document(*found)

    def _forget(self, change: PersonForgotten) -> None:
        place = (change.tenant, change.trace_id)
        said = self._connection.execute(
            "SELECT rowid, json_extract(body, '$.user_id') FROM revisions "
            "WHERE tenant = ? AND trace_id = ? AND received_us <= ?",
            (*place, change.until_us),
        ).fetchall()
        self._connection.executemany(
            "DELETE FROM revisions WHERE rowid = ?",
            [
                (number,)
                for number, user_id in said
                if change.whole or subject_of(change.tenant, user_id or "") in change.subjects
            ],
        )
        if change.whole:
            for (number,) in self._connection.execute(
                "SELECT id FROM documents WHERE tenant = ? AND source = 'example' AND name = ?",
                place,
            ).fetchall():
                self._delete_document(number)
        self._erased = True

    def _delete_document(self, number: int) -> None:
        for index in ("entries", "causes"):
            self._connection.execute(f"DELETE FROM {index} WHERE document = ?", (number,))
        self._connection.execute("DELETE FROM documents WHERE id = ?", (number,))
        self._erased = True

    def _delete_before(self, table: str, limit_ms: int) -> int:
        key = "tenant, trace_id, feedback_id" if table == "traces" else "rowid"
        old = f"SELECT {key} FROM {table} WHERE stored_ms < ? ORDER BY stored_ms LIMIT {PRUNE_ROWS}"
        if table == "documents":
            for index in ("entries", "causes"):
                self._connection.execute(
                    f"DELETE FROM {index} WHERE document IN ({old})", (limit_ms,)
                )
        return self._connection.execute(
            f"DELETE FROM {table} WHERE ({key}) IN ({old})", (limit_ms,)
        ).rowcount

    def _age_of_oldest_tenth(self) -> int:
        """Log time before which a tenth of some table lies, and no more of another."""
        limits: list[int] = []
        for table in _AGED:
            (rows,) = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            found = self._connection.execute(
                f"SELECT stored_ms + 1 FROM {table} ORDER BY stored_ms LIMIT 1 OFFSET ?",
                (rows // 10,),
            ).fetchone()
            limits.extend(found or ())
        return min(limits, default=0)
