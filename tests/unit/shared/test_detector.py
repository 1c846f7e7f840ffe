"""The detector beside the rules: what is masked, what is withheld, and what it asks."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from shared.http import detector as detector_module
from shared.http.detector import MAX_TEXTS, findings_of
from shared.kafka.deadletters import DeadLetters, list_dead_letters
from shared.kafka.log import Record
from shared.redaction import Redaction, redacted
from shared.redaction.detection import DetectedSpan, masked, needs_check, primed
from shared.redaction.turns import clean_turn
from shared.testing.log import MemoryLog
from shared.withheld import UNCHECKED
from tests.support.analyzer import analyzer_twin, detector_at
from tests.support.waiting import eventually

NAME = "Anna Miller"


def at(text: str, part: str, entity: str = "PERSON", score: float = 0.9) -> DetectedSpan:
    start = text.index(part)
    return DetectedSpan(entity, start, start + len(part), score)


@pytest.mark.parametrize(
    ("text", "parts", "left"),
    [
        ("👩‍👩‍👧 Anna lives in Lisbon.", [("Anna", "PERSON"), ("Lisbon", "LOCATION")], "👩‍👩‍👧 [NAME] lives in [LOCATION]."),
        ("ask Anna Miller now", [("Anna Miller", "PERSON"), ("Miller", "LOCATION")], "ask [NAME] now"),
        ("ask [NAME] Miller now", [("[NAME] Miller", "PERSON")], "ask [NAME] [NAME] now"),
        ("write to [EMAIL] now", [("[EMAIL]", "PERSON")], "write to [EMAIL] now"),
        ("write to [EMAIL] now", [("EMAIL", "PERSON")], "write to [EMAIL] now"),
        ("write to [EMAIL] now", [("to [EMA", "PERSON")], "write [NAME] [EMAIL] now"),
        ("Anna, Ben", [("Anna", "PERSON"), ("Ben", "PERSON")], "[NAME], [NAME]"),
        ("a US_SSN here", [("US_SSN", "US_SSN")], "a [US_SSN] here"),
        ("odd thing", [("odd", "<script>")], "[PII] thing"),
    ],
)  # fmt: skip
def test_what_is_found_is_masked(text: str, parts: list[tuple[str, str]], left: str) -> None:
    findings = [at(text, part, entity) for part, entity in parts]
    assert masked(text, findings).text == left
    assert masked(left, []).text == left


def test_whatever_is_found_nothing_of_it_is_left_and_markers_stay_whole() -> None:
    rng = random.Random(4)
    for _ in range(2_000):
        marks = ["[EMAIL]", "[NAME]"]
        text = "".join(rng.choice([*"abcdef 🎉é", *marks]) for _ in range(rng.randrange(1, 30)))
        places = [sorted(rng.sample(range(len(text) + 1), 2)) for _ in range(rng.randrange(4))]
        findings = [DetectedSpan("PERSON", start, end, rng.random()) for start, end in places]
        hidden = {index for start, end in places for index in range(start, end)}
        left = masked(text, findings).text
        for mark in marks:
            assert left.count(mark) >= text.count(mark)
        assert "[" not in left.replace("[EMAIL]", "").replace("[NAME]", "")
        inside = {
            index
            for mark in marks
            for begin in range(len(text))
            if text.startswith(mark, begin)
            for index in range(begin, begin + len(mark))
        }
        kept = [one for index, one in enumerate(text) if index not in hidden | inside]
        rest = left.replace("[EMAIL]", "").replace("[NAME]", "")
        letters = [one for one in rest if one.isalnum()]
        assert letters == [one for one in kept if one.isalnum()]


def test_machine_words_and_markers_are_not_asked_about() -> None:
    for text in ("", "thumbs_up", "en-GB", "[EMAIL] [CARD]", "12:30", "orderId", "... 42"):
        assert not needs_check(text), text
    for text in ("Anna", "ask anna", "анна", "[EMAIL] Anna", "[Anna]"):
        assert needs_check(text), text


async def test_all_texts_of_an_event_are_asked_about_at_once_and_once() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url, allow=("Ratchet",)) as detector:
        redact = Redaction(detector)

        def build(one: Any) -> list[str]:
            return [one(f"{NAME} from Lisbon"), one("nothing here"), one("joe@example.com is Joe")]

        for _ in range(2):
            kept = await redacted(redact, build)
            assert kept == ["[NAME] from [LOCATION]", "nothing here", "[EMAIL] is Joe"]
        (asked,) = twin.asked
    assert asked == {
        "text": [f"{NAME} from Lisbon", "nothing here", "[EMAIL] is Joe"],
        "language": "en",
        "score_threshold": 0.5,
        "entities": ["PERSON", "LOCATION"],
        "allow_list": ["Ratchet"],
    }


async def test_arguments_of_tools_stay_json_and_names_of_fields_stay() -> None:
    turn = {
        "role": "assistant",
        "content": f"I book for {NAME}",
        "reasoning": "The user is Miller.",
        "tool_calls": [
            {"id": "c1", "name": "book", "arguments": json.dumps({"City": "Lisbon", "for": [f'"{NAME}"']})}
        ],
    }  # fmt: skip
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        kept = await redacted(Redaction(detector), lambda redact: clean_turn(turn, redact))
        assert "City" not in twin.texts
    assert kept["content"] == "I book for [NAME]"
    assert kept["reasoning"] == "The user is [NAME]."
    arguments = json.loads(kept["tool_calls"][0]["arguments"])
    assert arguments == {"City": "[LOCATION]", "for": ['"[NAME]"']}


@pytest.mark.parametrize("fails", [{"status": 500}, {"answer": [[]] * 9}, {"answer": {"a": 1}}])
@pytest.mark.parametrize("fail_open", [False, True])
async def test_what_cannot_be_checked_is_withheld_unless_it_fails_open(
    fails: dict[str, Any], fail_open: bool
) -> None:
    registry = CollectorRegistry()
    async with (
        analyzer_twin() as twin,
        detector_at(twin.url, registry, fail_open=fail_open) as detector,
    ):
        for name, value in fails.items():
            setattr(twin, name, value)
        kept = await redacted(Redaction(detector), lambda redact: redact(f"I am {NAME}"))
        direct = Redaction(detector)(f"We are {NAME}")
    stored = "text" if fail_open else "marker"
    assert kept == (f"I am {NAME}" if fail_open else UNCHECKED)
    assert direct == (f"We are {NAME}" if fail_open else UNCHECKED)
    count = registry.get_sample_value("ratchet_texts_unchecked_total", {"stored": stored})
    assert count == 2
    assert registry.get_sample_value("ratchet_detector_requests_total", {"outcome": "failed"}) == 1


async def test_a_silent_analyzer_costs_its_deadline_and_then_nothing_until_it_is_tried_again() -> (
    None
):
    registry = CollectorRegistry()
    async with analyzer_twin() as twin, detector_at(twin.url, registry, timeout_s=0.05) as detector:
        twin.answering.clear()
        for number in range(5):
            assert await detector.find([f"Text {number}"]) == [None]
        assert len(twin.asked) == 3
        assert (
            registry.get_sample_value("ratchet_detector_requests_total", {"outcome": "paused"}) == 2
        )


async def test_many_texts_are_asked_about_in_parts() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url, max_running=2) as detector:
        builds = [lambda redact, n=n: redact(f"{NAME} is number {n}") for n in range(100)]
        review = await primed(Redaction(detector), builds)
        assert [build(review) for build in builds] == [f"[NAME] is number {n}" for n in range(100)]
        assert {len(body["text"]) for body in twin.asked} == {MAX_TEXTS, 100 % MAX_TEXTS}
        assert review(f"{NAME} came later") == UNCHECKED


async def test_each_language_is_asked() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url, languages=("en", "de")) as detector:
        await detector.find([NAME])
        assert [body["language"] for body in twin.asked] == ["en", "de"]


@pytest.mark.parametrize(
    "answer",
    [
        [[{"entity_type": "PERSON", "start": 0, "end": 6, "score": 1}]],
        [[{"entity_type": "PERSON", "start": 3, "end": 3, "score": 1}]],
        [[{"entity_type": "PERSON", "start": -1, "end": 3, "score": 1}]],
        [[{"start": 0, "end": 3, "score": 1}]],
        [{"entity_type": "PERSON", "start": 0, "end": 3, "score": 1}],
    ],
)
def test_an_answer_that_does_not_fit_its_text_is_none(answer: Any) -> None:
    with pytest.raises(ValueError, match="the answer"):
        findings_of(answer, ["Hello"])


@pytest.mark.parametrize("away", [False, True])
async def test_a_dead_letter_keeps_ids_and_form_or_has_no_body(away: bool) -> None:
    log = MemoryLog()
    body = {"trace_id": "Miller", "value": f"I am {NAME}"}
    headers = (("ce_type", b"Miller"), ("x-from", NAME.encode()))
    record = Record("ratchet.feedback-intake.acme.v1", 0, 7, "Miller", json.dumps(body).encode(), headers, 0)  # fmt: skip
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        twin.status = 500 if away else 200
        letters = DeadLetters(
            log, service="test", redact=Redaction(detector), metrics=CollectorRegistry()
        )
        await letters.put(record, "schema", f"value: {NAME}")
    (letter,) = await list_dead_letters(log)
    assert (letter.source_key, letter.headers["ce_type"]) == ("Miller", "Miller")
    assert NAME not in letter.to_json().decode()
    if away:
        assert letter.body == ""
    else:
        assert json.loads(letter.body) == {"trace_id": "Miller", "value": "I am [NAME]"}


def test_no_text_takes_long_to_mask() -> None:
    text = "[NAME] Anna " * 20_000
    findings = [DetectedSpan("PERSON", at, at + 4, 0.9) for at in range(7, len(text), 12)]
    began = time.process_time()
    assert "Anna" not in masked(text, findings).text
    assert time.process_time() - began < 2


async def test_texts_that_wait_go_together_whoever_asks() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url, max_running=2) as detector:
        twin.answering.clear()
        asked = [asyncio.create_task(detector.find([f"{NAME} {n // 2}"])) for n in range(100)]
        await eventually(lambda: len(twin.asked) == 2, "two requests run")
        twin.answering.set()
        found = await asyncio.gather(*asked)
        assert all(len(findings or ()) == 2 for (findings,) in found)
        assert len(twin.asked) <= 4, "50 texts, and two came first"
        assert len(twin.texts) == len(set(twin.texts)) == 50


async def test_who_goes_away_takes_no_text_from_others() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url, max_running=1) as detector:
        twin.answering.clear()
        asked = [asyncio.create_task(detector.find([NAME, f"Text {n}"])) for n in range(4)]
        await eventually(lambda: len(twin.asked) == 1, "one request runs")
        asked[0].cancel()
        twin.answering.set()
        found = await asyncio.gather(*asked[1:])
        assert [len(findings[0] or ()) for findings in found] == [2, 2, 2]
        assert twin.texts.count(NAME) == 1


async def test_many_texts_of_one_caller_have_the_deadline_of_as_many_requests() -> None:
    registry = CollectorRegistry()
    async with (
        analyzer_twin() as twin,
        detector_at(
            twin.url, registry, max_running=1, timeout_s=0.4, languages=("en", "de")
        ) as detector,
    ):
        twin.latency_s = 0.03
        texts = [f"Text {number}" for number in range(10 * MAX_TEXTS)]
        assert await detector.find(texts) == [()] * len(texts)
        twin.latency_s = 0.3
        running = asyncio.create_task(detector.find(["Running"]))
        await eventually(lambda: twin.texts[-1] == "Running", "it is asked")
        assert await detector.find(["Waiting"]) == [None]
        assert await running == [()]
    assert registry.get_sample_value("ratchet_detector_requests_total", {"outcome": "busy"}) == 1


async def test_texts_beyond_the_bound_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_module, "MAX_OPEN", 3)
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        assert await detector.find(["Anna", "Ben", "Cem", "Dora"]) == [None] * 4
        assert await detector.find(["Anna", "Ben", "Cem", "Anna"]) == [()] * 4


async def test_a_detector_that_is_closed_leaves_nobody_waiting() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url, max_running=1) as detector:
        twin.answering.clear()
        asked = [asyncio.create_task(detector.find([f"Text {n}"])) for n in range(3)]
        await eventually(lambda: len(twin.asked) == 1, "one request runs")
        await detector.close()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*asked) == [[None]] * 3
