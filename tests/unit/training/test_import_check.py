"""Imports with a detector on: what is trained on was checked, or the import is refused."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest

from services.training import import_check
from services.training.errors import BadDataset
from services.training.import_check import checked_import
from services.training.importing import ImportedRows, pairs_in
from services.training.rebuild import differences, rebuild
from shared.contracts.events.training import RunPhase
from shared.redaction import Redaction
from tests.support.analyzer import analyzer_twin, detector_at
from tests.unit.training.builders import request
from tests.unit.training.harness import TrainingHarness
from tests.unit.training.test_left_out import good, imported, stored

NAME = "Anna Miller"
CALL = {
    "id": "Miller",
    "type": "function",
    "function": {"name": "book", "arguments": json.dumps({"City": "Lisbon"})},
}
ROW: dict[str, Any] = {
    "id": "Miller-1",
    "messages": [
        {"role": "user", "content": f"I am {NAME}"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "Miller", "content": "booked for Miller"},
    ],
    "chosen": f"Dear {NAME}",
    "rejected": "No.",
}


def rows(*values: Any) -> ImportedRows:
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in values]
    return ImportedRows("file:///pairs.jsonl", BytesIO(b"".join(one + b"\n" for one in lines)))


async def test_every_text_of_a_row_is_checked_and_identifiers_stay() -> None:
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        checked = await checked_import(rows(ROW, ROW), Redaction(detector))
        (pair, _) = pairs_in(checked.lines())
        assert len(twin.asked) == 1
        texts = [turn.content for turn in pair.messages]
        assert texts == ["I am [NAME]", "", "booked for [NAME]"]
        assert pair.chosen == "Dear [NAME]"
        (call,) = pair.messages[1].tool_calls
        assert (call.id, call.name) == ("Miller", "book")
        assert json.loads(call.arguments) == {"City": "[LOCATION]"}
        assert checked.sha256 == rows(ROW, ROW).sha256
        checked.close()


async def test_without_a_detector_an_import_is_as_it_was() -> None:
    given = rows(ROW)
    assert await checked_import(given, Redaction()) is given


async def test_lines_keep_their_numbers_and_bad_ones_are_refused_for_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_check, "ROWS", 3)
    deep = {"extra": json.loads("[" * 400 + "]" * 400)}
    deeper = b"[" * 1_000 + b"]" * 1_000
    given = [ROW, b"no JSON", b"", {**ROW, "chosen": ""}, {**ROW, **deep}, deeper, ROW]
    left_out: list[Any] = []
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        checked = await checked_import(rows(*given), Redaction(detector))
        assert len(list(pairs_in(checked.lines(), left_out))) == 2
        checked.close()
    assert [one.line for one in left_out] == [2, 4, 5, 6]
    assert "not JSON" in left_out[0].detail


def test_a_row_nested_too_deep_is_refused_by_its_number() -> None:
    left_out: list[Any] = []
    deep = b'{"extra": ' + b"[" * 1_000 + b"]" * 1_000 + b"}"
    assert len(list(pairs_in(rows(ROW, deep).lines(), left_out))) == 1
    (row,) = left_out
    assert (row.line, row.detail) == (2, "nested too deep")


async def test_a_row_that_cannot_be_checked_refuses_the_import_by_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_check, "ROWS", 2)
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        plain = {"messages": [{"role": "user", "content": "hi"}], "chosen": "yes", "rejected": "no"}
        await detector.find(["hi", "yes", "no"])
        twin.status = 503
        with pytest.raises(BadDataset, match=r"line 3: the detector .* could not check it; try"):
            await checked_import(rows(plain, plain, ROW), Redaction(detector))


async def test_a_job_trains_on_what_was_checked_and_is_rebuilt_the_same(
    harness: TrainingHarness,
) -> None:
    named = [{**good(number), "chosen": f"{NAME} answers {number}"} for number in range(600)]
    uri = imported(harness, named)
    async with analyzer_twin() as twin, detector_at(twin.url) as detector:
        harness.redact = Redaction(detector)
        outcome = await harness.run(request(dataset_uri=uri))
        assert outcome.phase is RunPhase.succeeded
        dataset = stored(harness, harness.records()[-1].dataset.dataset_id)
        for content in dataset.files.values():
            assert NAME.encode() not in content
        again = await rebuild(harness.log, dataset, ("/",), redact=harness.redact)
        assert differences(dataset, again) == []
        twin.status = 503
        assert await detector.find(["Is it away?"]) == [None]
        refused = await harness.run(
            request("second", dataset_uri=imported(harness, [{**good(0), "chosen": f"{NAME} new"}]))
        )
    assert refused.phase is RunPhase.failed
    assert "line 1: the detector of personal data could not check it" in refused.message
