"""The evaluation report: whole, escaped, without anything from outside."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from services.training.charts import curve, intervals, paired_bars, shares
from services.training.dataset_files import DataFiles, FileRef
from services.training.dataset_manifest import Dataset, Manifest
from services.training.dataset_rows import JUDGE, TRAIN
from services.training.report import EvaluationReport
from services.training.sides import DatasetRules
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import GateCheck, GateResult

EVIL = "<script>alert('x')</script>"
NONE = FileRef(sha256="0", rows=0, bytes=0)
MANIFEST = Manifest(
    model="m",
    method=TrainingMethod.dpo,
    origin="log",
    offsets={},
    rules=DatasetRules(),
    refused={"too_short": 2},
    retracted=0,
    card={"counts": {"rows": 3}},
    files={TRAIN: NONE, JUDGE: NONE},
)
REPORT = EvaluationReport(
    title="m-v1.1",
    method="kto",
    parent="m-v1.0",
    gate=GateResult(
        passed=False, checks=(GateCheck(name="win_rate", passed=False, limit=0.5, detail=EVIL),)
    ),
    figures={
        "wins": 12.0,
        "ties": 0.0,
        "losses": 8.0,
        "win_rate": 0.6,
        "win_rate_low": 0.39,
        "win_rate_high": 0.78,
        "parent_perplexity": 4.0,
        "candidate_perplexity": 3.0,
    },
    dataset=Dataset(MANIFEST, DataFiles()),
    parameters={"beta": 0.1},
    samples=[
        {"messages": [{"role": "user", "content": EVIL}], "parent": EVIL, "candidate": "good"}
    ],
    lost=[
        {
            "kind": "cases",
            "case_id": "pair-7",
            "name": "correction",
            "messages": [{"role": "user", "content": "q"}],
            "good": EVIL,
            "bad": "b",
        }
    ],
)


def test_the_page_has_the_gate_the_figures_the_data_and_what_was_lost() -> None:
    page = REPORT.html()
    for said in ("Gate: refused", "no data", "pair-7", "too_short 2", "beta", "wins 12", "m-v1.0"):
        assert said in page


def test_a_refused_candidate_s_page_begins_with_what_happened_and_what_to_do() -> None:
    diagnosis = (
        "not improved after 2 attempts",
        "hyperparameters: raise learning_rate or <epochs>",
    )
    refused = replace(REPORT, diagnosis=diagnosis)
    page = refused.html()
    assert page.index("<li>not improved after 2 attempts</li>") < page.index("Gate: refused")
    assert "raise learning_rate or &lt;epochs&gt;" in page
    assert refused.data()["diagnosis"] == list(diagnosis)
    assert "what to do" not in REPORT.html(), "nothing is to be done of one that passed"


def test_the_win_rate_over_the_first_version_is_drawn_and_its_answer_stands_beside() -> None:
    first = {"first_win_rate": 0.8, "first_win_rate_low": 0.6, "first_win_rate_high": 0.9}
    (sample,) = REPORT.samples
    samples = [{**sample, "first": "its first words", "first_score": -0.5}]
    page = replace(REPORT, figures={**REPORT.figures, **first}, samples=samples).html()
    drawn = page.partition("95 % intervals")[2].partition("</svg>")[0]
    assert "first_win_rate" in drawn
    assert "its first words" in page
    assert "first_win_rate" not in REPORT.html()


def test_the_losses_of_each_stage_are_drawn() -> None:
    drawn = replace(REPORT, losses={"reward": [(1, 0.7), (2, 0.5)], "dpo": [(1, 0.6)]})
    assert "loss of reward by step" in drawn.html()
    assert "loss of dpo" not in drawn.html(), "one point is no curve"
    assert drawn.data()["losses"]["dpo"] == [(1, 0.6)]


def test_what_people_and_models_wrote_is_escaped() -> None:
    assert "<script" not in REPORT.html()


def test_the_page_needs_nothing_from_outside() -> None:
    assert not re.search(r"(src|href|url\(|@import|https?://)", REPORT.html())


def test_the_json_is_the_same_evaluation() -> None:
    data = json.loads(json.dumps(REPORT.data()))
    assert (data["gate"]["passed"], data["figures"]["win_rate"]) == (False, 0.6)
    assert data["lost"][0]["case_id"] == "pair-7"


@pytest.mark.parametrize(
    "drawing",
    [
        shares("t", [("a", 1.0), ("b", 0.0), ("c", 2.0)]),
        intervals("t", [("a", 0.1, 0.5, 0.9)], mark=0.5),
        paired_bars("<&>", [("a", 0.0, 0.0), ("b", 2.0, 1.0)]),
        curve("t", [(1, 0.7), (5, 0.2), (9, 0.4)]),
        curve("t", [(1, 0.7), (2, 0.7)]),
    ],
)
def test_a_chart_is_well_formed_and_stays_inside(drawing: str) -> None:
    root = ET.fromstring(drawing)
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for bar in root.iter("rect"):
        x, y, wide, high = (float(bar.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width + 0.2
        assert 0 <= y <= y + high <= height
    for line in root.iter("polyline"):
        for x, y in (map(float, point.split(",")) for point in line.attrib["points"].split()):
            assert 0 <= x <= width
            assert 0 <= y <= height
