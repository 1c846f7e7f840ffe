"""Events of a router with a detector: checked off the answer's path, and never lost."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.router import unchecked_calls
from services.router.interactions import Interactions
from services.router.spool import Spool
from services.router.unchecked_calls import UncheckedCalls
from services.router.unchecked_journal import UncheckedJournal
from shared.contracts.events.interactions import InteractionRecorded
from shared.redaction import Redactor, TextDetector
from tests.support.analyzer import analyzer_twin, detector_at
from tests.support.waiting import eventually
from tests.unit.router.test_interactions import call_of

NAME = "Anna Miller"
TURNS = [
    {"role": "system", "content": "You help the people of Lisbon."},
    {"role": "user", "content": f"I am {NAME}"},
]
CALLS = {
    "tool_calls": [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "book", "arguments": json.dumps({"City": "Lisbon"})},
        }
    ]
}


def events(spool: Spool) -> list[InteractionRecorded]:
    records, _ = spool.batch()
    return [InteractionRecorded.model_validate_json(one.value or b"") for one in records]


@asynccontextmanager
async def running(
    folder: Path, detector: TextDetector
) -> AsyncIterator[tuple[Interactions, Spool]]:
    spool = Spool(folder, limit_bytes=1_000_000)
    journal = UncheckedJournal(folder)
    interactions = Interactions(spool, Redactor(), unchecked=UncheckedCalls(detector, journal))
    work = asyncio.create_task(interactions.run())
    try:
        yield interactions, spool
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        spool.close()
        journal.close()


def recovered(folder: Path) -> list[InteractionRecorded]:
    """What the next process has of a folder, as it is when a process is killed now."""
    copy = folder.parent / f"{folder.name}-copy"
    shutil.copytree(folder, copy)
    spool, journal = Spool(copy, limit_bytes=1_000_000), UncheckedJournal(copy)
    try:
        assert journal.recover(spool) == 0
        records, place = spool.batch()
        assert journal.recovered + place.inherited == len(records)
        return events(spool)
    finally:
        spool.close()
        journal.close()
        shutil.rmtree(copy)


async def test_nothing_is_on_the_disk_before_its_texts_are_checked(tmp_path: Path) -> None:
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url) as detector,
        running(tmp_path, detector) as (interactions, spool),
    ):
        twin.answering.clear()
        for _ in range(3):
            interactions.record(call_of(TURNS, completion="Dear Miller", more=CALLS), 0.3)
        await eventually(lambda: bool(twin.asked), "a question to the analyzer")
        assert events(spool) == []
        twin.answering.set()
        await interactions.drain(5)
        found = events(spool)
    assert len(found) == 3
    for event in found:
        texts = [turn.content for turn in event.messages]
        assert texts == ["You help the people of [LOCATION].", "I am [NAME]"]
        assert event.completion == "Dear [NAME]"
        assert event.answer is not None
        assert json.loads(event.answer.tool_calls[0].arguments) == {"City": "[LOCATION]"}
        assert event.redactions == {"location": 2, "name": 2}
        assert event.untrainable == ()
    assert twin.texts.count(f"I am {NAME}") == 1


async def test_texts_that_were_not_checked_are_withheld_and_not_trained_on(tmp_path: Path) -> None:
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url) as detector,
        running(tmp_path, detector) as (interactions, spool),
    ):
        twin.status = 500
        interactions.record(call_of(TURNS, user="u1", metadata={"segment": "EU"}), 0.3)
        await interactions.drain(5)
        (event,) = events(spool)
    assert [turn.content for turn in event.messages] == ["[UNCHECKED]"] * 2
    assert event.completion == "[UNCHECKED]"
    assert event.context.segment == "EU"
    assert event.redactions == {"unchecked": 3}
    assert event.untrainable == ("unchecked",)


@pytest.mark.parametrize("limit", [{"MAX_BYTES": 0}, {}])
async def test_where_too_many_wait_or_the_end_comes_the_event_goes_without_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any]
) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(unchecked_calls, name, value)
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        twin.answering.clear()
        async with running(tmp_path, detector) as (interactions, spool):
            interactions.record(call_of(TURNS), 0.3)
            await interactions.drain(0.05)
            if limit:
                assert len(events(spool)) == 1
        (event,) = events(spool)
    assert event.completion == "[UNCHECKED]"
    assert NAME not in event.to_json().decode()


async def test_a_detector_that_breaks_loses_no_event(tmp_path: Path) -> None:
    class Broken:
        async def find(self, texts: Sequence[str]) -> list[None]:
            raise RuntimeError(texts[0])

        def unchecked(self) -> None:
            return None

    async with running(tmp_path, Broken()) as (interactions, spool):
        interactions.record(call_of(TURNS), 0.3)
        interactions.record(call_of(TURNS), 0.3)
        await interactions.drain(5)
        assert [one.completion for one in events(spool)] == ["[UNCHECKED]"] * 2


async def test_killed_at_any_moment_each_event_is_there_and_no_unchecked_text_is(
    tmp_path: Path,
) -> None:
    folder, recorded, seen = tmp_path / "router", set[str](), set[bool]()
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url) as detector,
        running(folder, detector) as (interactions, spool),
    ):
        for number in range(60):
            call = call_of([*TURNS, {"role": "user", "content": f"Question {number}"}])
            call.request.trace_id = f"{number:032x}"
            if number % 20 == 5:
                twin.answering.clear()
            if number % 20 == 15:
                twin.answering.set()
                await eventually(lambda: len(events(spool)) > 0, "some are checked")
            interactions.record(call, 0.3)
            recorded.add(call.request.trace_id)
            await asyncio.sleep(0)
            first: dict[str, InteractionRecorded] = {}
            for event in recovered(folder):
                first.setdefault(event.trace_id, event)
            assert set(first) == recorded
            checked = {event.trace_id for event in events(spool)}
            for trace, event in first.items():
                withheld = [turn.content for turn in event.messages] == ["[UNCHECKED]"] * 3
                assert withheld is (trace not in checked)
                seen.add(withheld)
                assert event.untrainable == (("unchecked",) if withheld else ())
            for file in folder.rglob("*.spool"):
                assert NAME.encode() not in file.read_bytes()
        assert seen == {True, False}
        twin.answering.set()
        await interactions.drain(5)
        assert len(recovered(folder)) == len(recorded)
    assert not [one for one in (folder / "unchecked").glob("*.spool") if one.stat().st_size]


async def test_without_a_disk_for_the_journal_events_are_checked_alike(tmp_path: Path) -> None:
    (tmp_path / "unchecked").touch()
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url) as detector,
        running(tmp_path, detector) as (interactions, spool),
    ):
        interactions.record(call_of(TURNS), 0.3)
        await interactions.drain(5)
        assert [event.messages[1].content for event in events(spool)] == ["I am [NAME]"]
