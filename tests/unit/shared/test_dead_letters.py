"""Dead letters: a record that is replayed and unreadable again is one letter."""

from __future__ import annotations

import dataclasses

import pytest
from prometheus_client import CollectorRegistry

from shared.contracts.topics import FEEDBACK
from shared.kafka.deadletters import REPLAY_OF, DeadLetters, Replays, list_dead_letters, replay
from shared.kafka.log import Record, read_to_end
from shared.testing.log import MemoryLog


async def test_replays_of_what_stays_unreadable_make_no_letter_more() -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    for offset in (7, 8):
        bad = Record(FEEDBACK, 0, offset, "k", b"no JSON", (), 0)
        await letters.put(bad, "schema", "is no JSON")
    for tries in (1, 2):
        assert await replay(log, await list_dead_letters(log)) == 2
        for again in (await read_to_end(log, FEEDBACK, timeout_s=5))[-2:]:
            await letters.put(again, "schema", "is no JSON")
        kept = await list_dead_letters(log)
        assert [one.source_offset for one in kept] == [7, 8], tries


async def test_a_place_that_no_replay_wrote_is_not_believed() -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    for offset, place in enumerate((b"0/1/2", b"-1/5", b"\xff", b"")):
        bad = Record(FEEDBACK, 0, offset, "k", b"no JSON", ((REPLAY_OF, place),), 0)
        await letters.put(bad, "schema", "is no JSON")
    assert [one.source_offset for one in await list_dead_letters(log)] == [0, 1, 2, 3]


async def test_replayed_letters_are_told_and_whether_that_helped() -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    for offset in (7, 8, 9):
        await letters.put(Record(FEEDBACK, 0, offset, "k", b"{}", (), 0), "schema", "bad")
    seventh, eighth, ninth = await list_dead_letters(log)
    await replay(log, [seventh, eighth])
    again = (await read_to_end(log, FEEDBACK, timeout_s=5))[0]
    await letters.put(again, "schema", "bad")
    replays = Replays()
    assert len(await list_dead_letters(log, replays=replays)) == 3
    at, failed = replays.of(seventh)
    assert (at is not None, failed) == (True, True)
    assert replays.of(eighth)[1] is False
    assert replays.shown(ninth) == {"replayed_at": None, "unreadable_again": False}
    await replay(log, [seventh])
    later = Replays()
    await list_dead_letters(log, source_topic=FEEDBACK, replays=later)
    found, failed = later.of(seventh)
    assert found is not None
    assert at is not None
    assert (found >= at, failed) == (True, False)


async def test_all_headers_come_back_with_a_replay() -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    headers = tuple((f"h{number}", str(number).encode()) for number in range(40))
    await letters.put(Record(FEEDBACK, 0, 1, "k", b"{}", headers, 0), "schema", "bad")
    (letter,) = await list_dead_letters(log)
    assert letter.detail == "bad"
    await replay(log, [letter])
    (again,) = await read_to_end(log, FEEDBACK, timeout_s=5)
    assert again.headers == (*headers, (REPLAY_OF, b"0/1"))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            Record(FEEDBACK, 0, 1, "k", b"{}", (("a", b"1"), ("a", b"2"), ("b", b"3")), 0),
            "bad (kept: 2 of its 3 headers)",
        ),
        (
            Record(FEEDBACK, 0, 1, "k", b"{}", tuple((f"h{n}", b"x" * 998) for n in range(50)), 0),
            "bad (kept: 31 of its 50 headers)",
        ),
        (
            Record(FEEDBACK, 0, 1, "k" * 1_001, b"{}", (("a", b"x" * 1_001),), 0),
            "bad (kept: 1000 characters of 1 long headers; 1000 of its key's 1001 characters)",
        ),
        (
            Record(FEEDBACK, 0, 1, "k", b"x" * 200_001, (), 0),
            "bad (kept: 200000 of its body's 200001 characters)",
        ),
        (
            Record(FEEDBACK, 0, 1, "k", b"\0" * 200_000, (), 0),
            "bad (kept: 100000 characters of its body)",
        ),
    ],
    ids=["a name twice", "too many", "too long", "a long body", "a body that JSON escapes"],
)
async def test_what_a_letter_lacks_is_in_its_detail(record: Record, said: str) -> None:
    log = MemoryLog()
    letters = DeadLetters(log, service="test", redact=str, metrics=CollectorRegistry())
    await letters.put(record, "schema", "bad")
    (letter,) = await list_dead_letters(log)
    assert letter.detail == said
    await letters.put(dataclasses.replace(record, offset=2), "schema", "d" * 5_000)
    (_, long) = await list_dead_letters(log)
    assert long.detail == "d" * 1_700 + said.removeprefix("bad")
