"""Rows, outputs and events of the aggregator with texts encrypted by person."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import orjson
import pytest

from services.aggregator.codec import SourceRecord
from services.aggregator.fold import FoldRules
from services.aggregator.join import fold_feedback, fold_interaction
from services.aggregator.pairs import fold_rated
from services.aggregator.personal_texts import PersonalTexts
from services.aggregator.rows import PromptRow, TraceRow, prompt_row_key, trace_key
from services.aggregator.writer import Write
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.subject import subject_of
from shared.contracts.topics import EXAMPLES, INTERACTIONS, QUALITY, USER_KEYS
from shared.kafka import user_key_upkeep
from shared.kafka.envelope import encode
from shared.kafka.log import EventLog, LogUnavailable
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.kafka.user_key_upkeep import UserKeyDestroyer
from shared.testing.log import MemoryLog
from shared.text_encryption import DataKey
from tests.support.aggregator import UP, at, feedback, interaction, source_record

RULES = FoldRules()
SECRET = "my mother's recipe"
KEY = trace_key(0, "acme", "t1")


@pytest.fixture(autouse=True)
def roll_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_key_upkeep, "ROLL_S", 0.0)


def issuer(brokers: MemoryLog) -> UserKeyIssuer:
    return UserKeyIssuer(cast("EventLog", brokers), b"s" * 32)


def row_of_two_people() -> TraceRow:
    """ann asked, ben corrected."""
    asked = interaction("t1", user="ann", prompt=SECRET, completion=f"about {SECRET}")
    row = fold_interaction(None, asked, asked.to_json(), 0, RULES).row
    said = feedback(
        "f1", "t1", FeedbackType.text_correction, {"corrected": "ben's words"}, user="ben"
    )
    return fold_feedback(row, said, 1, RULES).row


async def test_a_stored_row_holds_no_text_and_opens_as_it_was() -> None:
    keys = issuer(MemoryLog())
    texts = PersonalTexts(keys)
    encoded = row_of_two_people().encode()
    stored = texts.close_row(KEY, encoded)
    assert SECRET.encode() not in stored
    assert b"ben's words" not in stored
    assert TraceRow.decode(texts.open_row(KEY, stored)) == TraceRow.decode(encoded)


async def test_of_a_row_the_erased_person_s_part_alone_is_closed_and_figures_stay() -> None:
    brokers = MemoryLog()
    keys = issuer(brokers)
    texts = PersonalTexts(keys)
    row = row_of_two_people()
    stored = texts.close_row(KEY, row.encode())
    await texts.acknowledged()
    await texts.ready()
    await UserKeyDestroyer(cast("EventLog", brokers)).destroy([subject_of("acme", "ben")])
    await texts.ready()
    left = TraceRow.decode(texts.open_row(KEY, stored))
    assert SECRET.encode() in left.interaction
    body = left.entries["f1"].body
    assert body is not None
    assert body["value"]["corrected"] == "[encrypted]"
    assert left.entries["f1"].figures == row.entries["f1"].figures
    again = texts.close_row(KEY, left.encode())
    assert b"[encrypted]" in again, "what is closed for good is stored again as it is"
    await texts.close()


async def test_rated_answers_of_a_prompt_are_closed_too() -> None:
    texts = PersonalTexts(issuer(MemoryLog()))
    asked = interaction("t1", user="ann", prompt=SECRET, completion=f"about {SECRET}")
    row = fold_interaction(None, asked, asked.to_json(), 0, RULES).row
    outputs = fold_feedback(row, feedback("f1", "t1", UP, user="ben"), 1, RULES).outputs
    rated = next(one.event for one in outputs if isinstance(one.event, RatedAnswer))
    encoded = fold_rated(None, rated).row.encode()
    assert SECRET.encode() in encoded
    key = prompt_row_key(0, rated.prompt_key)
    stored = texts.close_row(key, encoded)
    assert SECRET.encode() not in stored
    assert PromptRow.decode(texts.open_row(key, stored)) == PromptRow.decode(encoded)


async def test_outputs_about_people_are_closed_and_figures_are_not() -> None:
    brokers = MemoryLog()
    texts = PersonalTexts(issuer(brokers))
    event = interaction("t1", user="ann", prompt=SECRET)
    headers = encode(event, source="/test", event_id="e1", time=at(0.0))
    written = texts.encrypted(Write(EXAMPLES, None, b"t1", event.to_json(), headers))
    assert SECRET.encode() not in (written.value or b"")
    figures = Write(QUALITY, None, b"v1", b'{"completion":"1"}', ())
    assert texts.encrypted(figures) is figures
    await texts.acknowledged()
    assert len(brokers.all(USER_KEYS)) == 1

    record = source_record("ratchet.interactions.v1", 0, 0, event)
    closed = replace(record, value=written.value, headers=headers)
    other = PersonalTexts(issuer(brokers))
    assert await other.opened(closed) == event.to_json()
    await other.close()


async def test_keys_of_a_turn_are_read_together_and_never_on_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brokers = MemoryLog()
    writer = PersonalTexts(issuer(brokers))
    events = [interaction(f"t{n}", user=f"user-{n}", prompt=SECRET) for n in range(20)]
    records: list[SourceRecord] = []
    for offset, event in enumerate(events):
        headers = encode(event, source="/test", event_id=event.trace_id, time=at(0.0))
        written = writer.encrypted(Write(INTERACTIONS, None, b"t", event.to_json(), headers))
        record = source_record(INTERACTIONS, 0, offset, event)
        records.append(replace(record, value=written.value, headers=headers))
    await writer.acknowledged()
    await UserKeyDestroyer(cast("EventLog", brokers)).destroy([subject_of("acme", "user-0")])

    keys = issuer(brokers)
    texts = PersonalTexts(keys)
    await texts.ready()
    readers: list[int] = []
    read, read_of = keys._read, keys._read_of

    def noting_read(key_ids: Iterable[str]) -> dict[str, bytes | None]:
        readers.append(threading.get_ident())
        return read(key_ids)

    def noting_read_of(subjects: Iterable[str]) -> dict[str, DataKey]:
        readers.append(threading.get_ident())
        return read_of(subjects)

    monkeypatch.setattr(keys, "_read", noting_read)
    monkeypatch.setattr(keys, "_read_of", noting_read_of)
    await texts.prefetch([*records, replace(records[0], value=(records[0].value or b"")[:-5])])
    assert len(readers) == 2
    assert threading.get_ident() not in readers
    for event, record in zip(events[1:], records[1:], strict=True):
        assert await texts.opened(record) == event.to_json()
        row = fold_interaction(None, event, event.to_json(), 0, RULES).row
        texts.close_row(trace_key(0, "acme", event.trace_id), row.encode())
    assert len(readers) == 2
    assert not keys._pending, "whose key is destroyed gets no other"
    await texts.close()


async def test_a_row_whose_key_was_changed_is_no_erased_person_s() -> None:
    brokers = MemoryLog()
    keys = issuer(brokers)
    texts = PersonalTexts(keys)
    stored = texts.close_row(KEY, row_of_two_people().encode())
    await texts.acknowledged()
    whole = brokers.all(USER_KEYS)[0]
    changed = orjson.dumps(orjson.loads(whole.value or b"") | {"wrapped": "AAAA"})
    other = MemoryLog()  # as compaction leaves it
    for record in (replace(whole, value=changed), *brokers.all(USER_KEYS)[1:]):
        await other.append(USER_KEYS, key=record.key, value=record.value, headers=record.headers)
    late = PersonalTexts(issuer(other))
    await late.ready()
    with pytest.raises(LogUnavailable, match="RATCHET_TEXT_KEY_FILE"):
        late.open_row(KEY, stored)
    await late.close()
