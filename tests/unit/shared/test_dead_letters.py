"""Dead letters: a record that is replayed and unreadable again is one letter."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from shared.contracts.topics import FEEDBACK
from shared.kafka.deadletters import REPLAY_OF, DeadLetters, list_dead_letters, replay
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
