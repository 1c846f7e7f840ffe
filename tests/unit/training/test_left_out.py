"""Rows that cannot be trained on are left out, each counted with its reason; the job goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.training.dataset_files import DataFiles
from services.training.dataset_manifest import Dataset
from services.training.dataset_rows import JUDGE, TRAIN, LeftOut
from services.training.dataset_store import DatasetStore
from services.training.rebuild import differences, rebuild
from shared.contracts.events.training import RunPhase
from tests.unit.training.builders import request
from tests.unit.training.harness import TrainingHarness


def unfit(harness: TrainingHarness, *rows: dict[str, Any]) -> None:
    (harness.folder / "fit.json").write_text(json.dumps({"left_out": rows}))


def too_long(line: int, file: str = TRAIN) -> dict[str, Any]:
    detail = "612 tokens; max_length is 512"
    return {"file": file, "line": line, "reason": "too_long", "detail": detail}


def refused_by_template(line: int) -> dict[str, Any]:
    detail = "TemplateError: a tool turn without calls"
    return {"file": TRAIN, "line": line, "reason": "template", "detail": detail}


def imported(harness: TrainingHarness, rows: list[Any]) -> str:
    path = harness.folder / "import.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def good(number: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"imported question {number}"}],
        "chosen": f"yes, that is right {number}",
        "rejected": f"no, that is wrong {number}",
    }


def stored(harness: TrainingHarness, dataset_id: str) -> Dataset:
    found = DatasetStore(harness.settings.datasets_uri).read(dataset_id)
    assert found is not None
    return found


async def test_one_row_fails_the_job(harness: TrainingHarness) -> None:
    unfit(harness, refused_by_template(3))
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.succeeded
    assert "rows left out: 1 template" in outcome.message
    made = harness.records()[-1]
    assert made.dataset.refused == {"template": 1}
    dataset = stored(harness, made.dataset.dataset_id)
    assert dataset.manifest.refused == {"template": 1}
    assert made.dataset.rows == dataset.files[TRAIN].count(b"\n")
    report = (harness.published(made) / "report.html").read_text()
    assert "<td>left out</td><td>template 1</td>" in report
    assert "train.jsonl line 3: template: TemplateError: a tool turn without calls" in report


async def test_rows_longer_than_max_length(harness: TrainingHarness) -> None:
    unfit(harness, too_long(1), too_long(2), too_long(1, JUDGE))
    outcome = await harness.run(request(), max_context=4096)
    assert outcome.phase is RunPhase.succeeded
    made = harness.records()[-1]
    assert made.dataset.refused == {"judge_too_long": 1, "too_long": 2}
    assert made.metrics["judge_pairs"] == 40, "the judge's own figure, of the fake trainer"
    dataset = stored(harness, made.dataset.dataset_id)
    assert dataset.manifest.files[JUDGE].rows == 49
    assert dataset.manifest.card["counts"]["rows"] == made.dataset.rows
    assert made.hyperparameters["max_length"] == 4096
    assert made.hyperparameters["reward"]["max_length"] == 4096


async def test_a_job_of_which_no_row_fits_says_so_and_trains_nothing(
    harness: TrainingHarness,
) -> None:
    unfit(harness, *(too_long(line) for line in range(1, 61)))
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.failed
    assert "no rows to train assistant on by dpo (left out: 60 too_long" in outcome.message
    assert "612 tokens; max_length is 512" in outcome.message
    assert "raise max_length" in outcome.message
    assert harness.starts == []


async def test_a_job_whose_template_renders_no_row_says_so(harness: TrainingHarness) -> None:
    unfit(harness, *(refused_by_template(line) for line in range(1, 61)))
    outcome = await harness.run(request())
    assert outcome.phase is RunPhase.failed
    assert "the base's chat template must render the rows" in outcome.message
    assert harness.starts == []


async def test_a_given_max_length_wins_over_the_served_context(harness: TrainingHarness) -> None:
    await harness.run(request(hyperparameters={"max_length": 64}), max_context=4096)
    assert harness.records()[-1].hyperparameters["max_length"] == 64


async def test_a_dataset_with_rows_left_out_is_rebuilt_the_same(harness: TrainingHarness) -> None:
    unfit(harness, refused_by_template(3), too_long(5))
    uri = imported(harness, [*map(good, range(600)), {**good(600), "chosen": ""}])
    await harness.run(request(dataset_uri=uri))
    dataset = stored(harness, harness.records()[-1].dataset.dataset_id)
    assert [row.reason for row in dataset.left_out] == ["bad_row", "template", "too_long"]
    assert differences(dataset, await rebuild(harness.log, dataset, ("/",))) == []


async def test_one_empty_answer_does_not_refuse_the_import(harness: TrainingHarness) -> None:
    rows = [*map(good, range(600))]
    rows[6]["chosen"] = ""
    outcome = await harness.run(request(dataset_uri=imported(harness, rows)))
    assert outcome.phase is RunPhase.succeeded
    made = harness.records()[-1]
    assert made.dataset.refused["bad_row"] == 1
    (row,) = stored(harness, made.dataset.dataset_id).left_out
    assert (row.file, row.line) == ("import", 7)
    assert "chosen: must be a text" in row.detail
    assert "import line 7" in (harness.published(made) / "report.html").read_text()


async def test_strict_refuses_the_whole_import_for_one_bad_row(harness: TrainingHarness) -> None:
    rows = [*map(good, range(40)), {**good(40), "chosen": ""}]
    outcome = await harness.run(request(dataset_uri=imported(harness, rows), strict=True))
    assert outcome.phase is RunPhase.failed
    assert "line 41: chosen: must be a text" in outcome.message
    assert harness.starts == []


async def test_an_import_without_a_good_row_is_refused_by_line(harness: TrainingHarness) -> None:
    outcome = await harness.run(request(dataset_uri=imported(harness, [[], {"chosen": 1}])))
    assert outcome.phase is RunPhase.failed
    assert "line 1: not an object" in outcome.message


@pytest.mark.parametrize(("file", "name"), [(TRAIN, "too_long"), (JUDGE, "judge_too_long")])
def test_what_is_left_out_is_counted_by_the_file_it_was_in(file: str, name: str) -> None:
    assert LeftOut.model_validate(too_long(1, file)).counted_as == name


async def test_an_older_dataset_has_no_such_file(harness: TrainingHarness) -> None:
    await harness.run(request())
    dataset = stored(harness, harness.records()[-1].dataset.dataset_id)
    files = {name: [data] for name, data in dataset.files.items() if name != "left_out.jsonl"}
    assert Dataset(dataset.manifest, DataFiles(files)).left_out == ()
