"""Prompts ranked by what a vote on them would tell, and the plan that the voting page reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli import scores as scoring
from services.cli.errors import CliError
from services.cli.prioritise import prioritise
from services.cli.probes import asking
from services.feedback.voting.plan import load_plan
from shared.information import COMPARED_WORDS, AnsweredTwice, Score, diversified, information


def answered(
    text: str, margin: float, first: str = "one two", second: str = "six ten", doubt: float = 0.0
) -> Any:
    return AnsweredTwice(text, (first, second), (Score(margin, doubt), Score(0.0, doubt)))


def test_unsure_and_different_tells_most_sure_or_equal_nothing() -> None:
    assert information(answered("q", 0.0)) == 1.0
    assert information(answered("q", 1.0)) == information(answered("q", -1.0)) < 1.0
    assert information(answered("q", 50.0)) == pytest.approx(0.0, abs=1e-9)
    assert information(answered("q", 0.0, "the same", "the same")) == 0.0
    assert information(answered("q", 0.0, "a b", "a c")) == pytest.approx(0.5)


def test_where_the_heads_of_the_reward_model_disagree_a_vote_tells_more() -> None:
    told = [information(answered("q", 2.0, doubt=doubt)) for doubt in (0.0, 1.0, 4.0)]
    assert told == sorted(set(told))
    assert information(answered("q", 0.0, doubt=4.0)) == 1.0


def test_of_long_answers_the_beginnings_are_compared() -> None:
    alike, other = "same " * COMPARED_WORDS, "other " * 100_000
    assert information(answered("q", 0.0, alike, alike + other)) == 0.0
    assert information(answered("q", 0.0, other, alike)) == 1.0


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


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Router and scorer; m-v2 fails at what begins with `broken`. Holds the router's headers."""
    scores = {"sure?": (5.0, -5.0), "unsure?": (0.1, 0.0), "disputed?": (5.0, -5.0)}
    asked: list[Any] = []

    def fetch(_: Any, __: str, *, body: Any, headers: Any, **___: Any) -> tuple[int, str]:
        asked.append(headers)
        if body["model"] == "m-v2" and body["messages"][0]["content"].startswith("broken"):
            return 503, json.dumps({"error": {"message": "no engine"}})
        return 200, json.dumps({"choices": [{"message": {"content": f"{body['model']} says"}}]})

    def ask(_: Any, __: str, ___: str, path: str, *, body: Any, **____: Any) -> Any:
        assert path == "/v1/score"
        texts = [item["messages"][0]["content"] for item in body["items"]]
        doubts = [3.0 if text == "disputed?" else 0.0 for text in texts]
        found = [scores[text][n % 2] for n, text in enumerate(texts)]
        return {"scores": found, "uncertainties": doubts if any(doubts) else []}

    monkeypatch.setattr(scoring, "ask", ask)
    monkeypatch.setattr(asking, "fetch", fetch)
    return asked


def test_a_plan_gets_its_prompts_in_that_order_and_the_page_reads_it(
    tmp_path: Path, stack: list[Any]
) -> None:
    plan, ranked = tmp_path / "plan.yaml", tmp_path / "ranked.yaml"
    plan.write_text(yaml.safe_dump({"goal": 7, "prompts": ["sure?", {"text": "unsure?"}]}))
    prioritise(plan, ("m-v1", "m-v2"), to=ranked, model="m")
    read = load_plan(ranked)
    assert read.goal == 7
    assert [one.text for one in read.prompts] == ["unsure?", "sure?"]
    assert read.prompts[0].information > read.prompts[1].information
    assert {"x-ratchet-purpose": "evaluation"} in stack
    assert all(headers == stack[0] for headers in stack), "none of it is live traffic"


@pytest.mark.usefixtures("stack")
def test_of_prompts_with_the_same_scores_the_disputed_one_is_asked_first(tmp_path: Path) -> None:
    plan, ranked = tmp_path / "plan.yaml", tmp_path / "ranked.yaml"
    plan.write_text(yaml.safe_dump({"prompts": ["sure?", "disputed?"]}))
    prioritise(plan, ("m-v1", "m-v2"), to=ranked, model="m")
    assert [one.text for one in load_plan(ranked).prompts] == ["disputed?", "sure?"]


@pytest.mark.usefixtures("stack")
def test_a_prompt_that_one_version_fails_at_stops_no_other_and_stands_last(tmp_path: Path) -> None:
    plan, ranked = tmp_path / "plan.yaml", tmp_path / "ranked.yaml"
    plan.write_text(yaml.safe_dump({"prompts": ["broken?", "unsure?"]}))
    prioritise(plan, ("m-v1", "m-v2"), to=ranked, model="m")
    prompts = load_plan(ranked).prompts
    assert [one.text for one in prompts] == ["unsure?", "broken?"]
    assert prompts[1].information == 0
    plan.write_text(yaml.safe_dump({"prompts": ["broken?", "broken too?"]}))
    with pytest.raises(CliError, match="none of 2 questions was answered"):
        prioritise(plan, ("m-v1", "m-v2"), to=ranked, model="m")


def test_a_prompt_without_text_is_named_by_its_place(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"prompts": ["a", {"category": "c"}]}))
    with pytest.raises(CliError, match="prompt 2: must be a text"):
        prioritise(plan, ("a", "b"), to=tmp_path / "out", model="m")


def test_a_plan_without_prompts_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("goal: 7\n")
    with pytest.raises(CliError, match="prompts: give 1 to"):
        prioritise(plan, ("a", "b"), to=tmp_path / "out", model="m")
