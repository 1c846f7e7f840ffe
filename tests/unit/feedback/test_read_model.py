"""The read model's store: what a record changes, exactly once, whatever ends the process."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from services.feedback.read_model import schema
from services.feedback.read_model.schema import OtherFormat, delete_database, open_for_reading
from services.feedback.read_model.store import (
    LOADED_FEEDBACKS,
    MAX_REVISIONS,
    LogReplaced,
    ReadModelStore,
)
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.votes import Choice
from shared.contracts.topics import FEEDBACK
from shared.kafka.log import Record
from tests.support.aggregator import DOWN, UP, feedback, interaction, vote, withdrawn
from tests.support.read_model import STORED_MS, LogBuilder

TABLES = ("offsets", "revisions", "traces", "loaded_traces", "documents", "entries", "causes")
MB = 1_000_000


def a_log() -> list[Record]:
    """Joins in both orders, an edit, a withdrawal, a correction, a vote and a pair of ratings."""
    log = LogBuilder()
    log.take(
        interaction("t1"),
        feedback("f1", "t1", UP),
        feedback("f1", "t1", DOWN, revision=1),
        feedback("f2", "t2", UP, user="u2"),
        interaction("t2", completion="Ask the shop.", version="assistant-v1.1"),
        withdrawn("f2", "t2"),
        interaction("t3", completion="It is in the box."),
        feedback("f3", "t3", FeedbackType.text_correction, {"corrected": "Ask us."}, user="u3"),
        feedback("f4", "t3", UP, user="u4"),
        vote("c1", Choice.right),
        feedback("f5", "t-unknown", UP),
    )
    return log.records


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the file but for the numbers that SQLite gives to documents."""
    with open_for_reading(path) as read:
        numbers = {row[0]: tuple(row[1:4]) for row in read.execute("SELECT * FROM documents")}
        found: dict[str, list[tuple[Any, ...]]] = {}
        for table in TABLES:
            rows = [
                {
                    name: numbers[value] if name == "document" else value
                    for name, value in dict(row).items()
                    if name != "id"
                }
                for row in read.execute(f"SELECT * FROM {table}")
            ]
            found[table] = sorted(tuple(row.values()) for row in rows)
    return found


def opened(path: Path, *, max_bytes: int = 100 * MB) -> ReadModelStore:
    return ReadModelStore(path, max_bytes=max_bytes)


def folded(path: Path, records: list[Record], *, batch: int = 3) -> None:
    model = opened(path)
    for start in range(0, len(records), batch):
        model.fold(records[start : start + batch], not_before_ms=0)
    model.close()


class WriterKilled(BaseException):
    """The process ends here."""


class KilledConnection(sqlite3.Connection):
    """A connection whose process ends before a given statement."""

    left = 0

    def _count(self) -> None:
        type(self).left -= 1
        if type(self).left < 0:
            raise WriterKilled

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().executemany(*arguments)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_killed_before_any_statement_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    records = a_log()
    folded(tmp_path / "whole", records, batch=batch)
    expected = contents(tmp_path / "whole")
    connect = sqlite3.connect
    monkeypatch.setattr(
        schema.sqlite3,
        "connect",
        lambda *given, **named: connect(
            *given, **({"factory": KilledConnection} | named if "uri" not in named else named)
        ),
    )
    path = tmp_path / "killed"
    KilledConnection.left = 1_000_000
    opened(path).close()
    statements = 3
    kills = 0
    while True:
        KilledConnection.left = statements
        model: ReadModelStore | None = None
        try:
            model = opened(path)
            following = model.positions()
            left = [
                one for one in records if one.offset >= following.get((one.topic, one.partition), 0)
            ]
            for start in range(0, len(left), batch):
                model.fold(left[start : start + batch], not_before_ms=0)
        except WriterKilled:
            kills += 1
            statements += 1  # each life ends one statement later than the one before
            continue
        finally:
            KilledConnection.left = 1_000_000
            if model is not None:
                model.close()
        break
    assert kills > 10
    assert contents(path) == expected


def test_what_was_folded_already_means_another_log(tmp_path: Path) -> None:
    records = a_log()
    model = opened(tmp_path / "model")
    model.fold(records, not_before_ms=0)
    with pytest.raises(LogReplaced):
        model.fold(records[:1], not_before_ms=0)


def test_repeats_of_an_event_at_later_offsets_change_nothing(tmp_path: Path) -> None:
    log = LogBuilder()
    log.take(interaction(), feedback(), withdrawn())
    folded(tmp_path / "once", log.records)
    events = list(log.records)
    ends = {(one.topic, one.partition): 0 for one in events}
    for one in events:
        ends[one.topic, one.partition] = max(ends[one.topic, one.partition], one.offset + 1)
    repeated = [
        Record(
            one.topic,
            one.partition,
            one.offset + ends[one.topic, one.partition],
            one.key,
            one.value,
            one.headers,
            one.timestamp_ms,
        )
        for one in events
    ]
    folded(tmp_path / "twice", [*events, *repeated])
    once, twice = contents(tmp_path / "once"), contents(tmp_path / "twice")
    for table in ("revisions", "traces", "entries", "causes"):
        assert once[table] == twice[table], table


def test_an_unreadable_record_is_counted_and_passed_over(tmp_path: Path) -> None:
    log = LogBuilder()
    good = log.take(feedback("f1"))
    model = opened(tmp_path / "model")
    bad = Record(FEEDBACK, 0, 50, "t", b"{", good[0].headers, STORED_MS)
    model.fold([*good, bad], not_before_ms=0)
    assert model.unreadable == 1
    assert model.positions()[FEEDBACK, 0] == 51
    assert len(contents(tmp_path / "model")["revisions"]) == 1


def test_a_full_disk_stores_nothing_of_a_batch_and_all_of_it_later(tmp_path: Path) -> None:
    log = LogBuilder()
    events = [
        feedback(f"f{number}", f"t{number}", FeedbackType.comment, "x" * 50_000)
        for number in range(40)
    ]
    records = log.take(*events)
    small = opened(tmp_path / "model", max_bytes=MB)
    stored = 0
    while small.bytes_used() < MB:
        small.fold([records[stored]], not_before_ms=0)
        stored += 1
    with pytest.raises(sqlite3.OperationalError, match="full"):
        small.fold(records[stored:], not_before_ms=0)
    assert 0 < stored < len(records)
    small.close()
    model = opened(tmp_path / "model")
    model.fold(records[stored:], not_before_ms=0)
    model.close()
    folded(tmp_path / "whole", records)
    assert contents(tmp_path / "model") == contents(tmp_path / "whole")


def test_pruning_keeps_the_newest_within_the_limit(tmp_path: Path) -> None:
    log = LogBuilder()
    model = opened(tmp_path / "model", max_bytes=MB)
    for number in range(200):
        comment = feedback(f"f{number}", f"t{number}", FeedbackType.comment, "x" * 20_000)
        model.fold(log.take(comment), not_before_ms=0)
        while model.is_full():
            assert model.prune(not_before_ms=0) > 0
    kept = {row[1] for row in contents(tmp_path / "model")["revisions"]}
    assert "f199" in kept
    assert "f0" not in kept
    assert 20 <= len(kept) < 100
    assert model.bytes_used() <= MB


def test_rows_leave_at_their_age_with_all_that_points_to_them(tmp_path: Path) -> None:
    records = a_log()
    model = opened(tmp_path / "model")
    model.fold(records, not_before_ms=0)
    while model.prune(not_before_ms=records[-1].timestamp_ms + 1):
        pass
    left = contents(tmp_path / "model")
    assert {table: rows for table, rows in left.items() if rows and table != "offsets"} == {}
    assert model.oldest_ms() is None


def test_records_beyond_retention_are_passed_over(tmp_path: Path) -> None:
    records = a_log()
    model = opened(tmp_path / "model")
    assert model.fold(records, not_before_ms=records[-1].timestamp_ms) == 1


def test_revisions_of_one_feedback_are_bounded(tmp_path: Path) -> None:
    log = LogBuilder()
    model = opened(tmp_path / "model")
    for revision in range(MAX_REVISIONS + 20):
        event = feedback("f1", revision=revision, seconds=revision)
        model.fold([log.add(FEEDBACK, "t1", event)], not_before_ms=0)
    kept = sorted(row[3] for row in contents(tmp_path / "model")["revisions"])
    assert kept == list(range(20, MAX_REVISIONS + 20))


def test_a_trace_is_listed_as_loaded_by_count_and_by_size(tmp_path: Path) -> None:
    log = LogBuilder()
    model = opened(tmp_path / "model")
    for number in range(LOADED_FEEDBACKS):
        event = feedback(f"f{number}", "many")
        model.fold([log.add(FEEDBACK, "many", event)], not_before_ms=0)
    for number in range(7):
        event = feedback(f"f{number}", "large", FeedbackType.comment, "x" * 99_000)
        model.fold([log.add(FEEDBACK, "large", event)], not_before_ms=0)
    model.fold([log.add(FEEDBACK, "few", feedback("f0", "few"))], not_before_ms=0)
    assert [row[1] for row in contents(tmp_path / "model")["loaded_traces"]] == ["large", "many"]


def test_a_file_of_another_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path / "model").close()
    monkeypatch.setattr(schema, "FORMAT", schema.FORMAT + 1)
    with pytest.raises(OtherFormat):
        opened(tmp_path / "model")
    delete_database(tmp_path / "model")
    opened(tmp_path / "model").close()


def test_batches_of_any_size_fold_to_the_same_rows(tmp_path: Path) -> None:
    records = a_log()
    folded(tmp_path / "whole", records, batch=len(records))
    expected = contents(tmp_path / "whole")
    rng = random.Random(5)
    for number in range(5):
        path = tmp_path / f"model-{number}"
        model = opened(path)
        start = 0
        while start < len(records):
            end = start + rng.randint(1, 5)
            model.fold(records[start:end], not_before_ms=0)
            start = end
        model.close()
        assert contents(path) == expected
