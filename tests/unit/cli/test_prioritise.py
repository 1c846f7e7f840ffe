"""Prompts ranked by what a vote on them would tell, and the plan that the voting page reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli import prioritise as module
from services.cli.errors import CliError
from services.cli.information import AnsweredTwice, diversified, information
from services.cli.prioritise import prioritise
from services.feedback.voting.plan import load_plan


def answered(text: str, margin: float, first: str = "one two", second: str = "six ten") -> Any:
    return AnsweredTwice(text, (first, second), (margin, 0.0))


def test_unsure_and_different_tells_most_sure_or_equal_nothing() -> None:
    assert information(answered("q", 0.0)) == 1.0
    assert information(answered("q", 1.0)) == information(answered("q", -1.0)) < 1.0
    assert information(answered("q", 50.0)) == pytest.approx(0.0, abs=1e-9)
    assert information(answered("q", 0.0, "the same", "the same")) == 0.0
    assert information(answered("q", 0.0, "a b", "a c")) == pytest.approx(0.5)


def test_of_two_alike_prompts_the_second_waits_for_another_kind() -> None:
    order = diversified(
        [
            answered("where is my red parcel", 0.0),
            answered("where is my blue parcel", 0.1),
            answered("cancel the invoice please", 1.5),
        ]
    )
    assert [text for text, _ in order] == [
        "where is my red parcel",
        "cancel the invoice please",
        "where is my blue parcel",
    ]
    gains = [gain for _, gain in order]
    assert gains == sorted(gains, reverse=True)


def test_a_plan_gets_its_prompts_in_that_order_and_the_page_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"sure?": (5.0, -5.0), "unsure?": (0.1, 0.0)}

    def ask(_: Any, service: str, __: str, path: str, *, body: Any, **___: Any) -> Any:
        if service == "router":
            text = f"{body['model']} says"
            return {"choices": [{"message": {"content": text}}]}
        assert path == "/v1/score"
        texts = [item["messages"][0]["content"] for item in body["items"]]
        return {"scores": [scores[text][n % 2] for n, text in enumerate(texts)]}

    monkeypatch.setattr(module, "ask", ask)
    plan, ranked = tmp_path / "plan.yaml", tmp_path / "ranked.yaml"
    plan.write_text(yaml.safe_dump({"goal": 7, "prompts": ["sure?", {"text": "unsure?"}]}))
    prioritise(plan, ("m-v1", "m-v2"), to=ranked, model="m")
    read = load_plan(ranked)
    assert read.goal == 7
    assert [one.text for one in read.prompts] == ["unsure?", "sure?"]
    assert read.prompts[0].information > read.prompts[1].information


def test_a_plan_without_prompts_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("goal: 7\n")
    with pytest.raises(CliError, match="prompts: give 1 to"):
        prioritise(plan, ("a", "b"), to=tmp_path / "out", model="m")
