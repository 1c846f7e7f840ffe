"""The voting plan, its categories and the choice of prompts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.feedback.voting.categories import DEFAULT_CATEGORIES, OTHER, classify
from services.feedback.voting.plan import (
    MAX_PLAN_BYTES,
    PlanUnreadable,
    VotingPlan,
    load_plan,
)
from services.feedback.voting.prompts import PromptQueue, snippet


@pytest.mark.parametrize(
    ("question", "category"),
    [
        ("What is the capital of France?", "factual_qa"),
        ("Compare tea and coffee.", "comparison"),
        ("Write a poem about rain", "creative"),
        ("My printer FAILS at once", "problem_solving"),
        ("why is the sky blue", "explanation"),
        ("Guten Tag", OTHER),
        ("somewhat whatever", OTHER),
    ],
)
def test_a_question_is_classified_by_whole_words(question: str, category: str) -> None:
    assert classify(question, DEFAULT_CATEGORIES) == category


def test_a_rater_s_category_overrides_the_classifier() -> None:
    plan = VotingPlan()
    assert plan.category_of("Compare tea and coffee.", "creative") == "creative"
    assert plan.category_of("Compare tea and coffee.", "no such one") == "comparison"


def test_a_plan_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "goal: 30\ncategories: [{name: billing, words: [invoice]}]\n"
        "prompts: [Where is my invoice, {text: Hello, category: other}]\n"
    )
    plan = load_plan(file)
    assert plan.goal == 30
    assert plan.category_names == ("billing", OTHER)
    assert [prompt.text for prompt in plan.prompts] == ["Where is my invoice", "Hello"]
    assert load_plan(None) == VotingPlan()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("goal: many", "goal: Input should be a valid integer"),
        ("goals: 3", "goals: Extra inputs are not permitted"),
        ("prompts: [{text: Hello, category: nope}]", "prompts.0.category: nope is not one of"),
        ("categories: [{name: a}, {name: a}]", "categories: a name stands twice"),
        ("prompts: ['']", "prompts.0.text: String should have at least 1 character"),
        ("prompts: [", "is no YAML"),
        ("- 1", "Input should be a valid dictionary"),
        ("#" * (MAX_PLAN_BYTES + 1), "is larger than"),
    ],
)
def test_a_wrong_plan_is_refused_by_field_and_rule(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(PlanUnreadable, match=f"plan.yaml: .*{said}"):
        load_plan(file)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanUnreadable, match=r"nowhere\.yaml: No such file"):
        load_plan(tmp_path / "nowhere.yaml")


PROMPTS = ["What is one?", "What is two?", "Write three.", "Why four?"]
QUEUE = PromptQueue(VotingPlan.model_validate({"prompts": PROMPTS}))


def test_the_least_covered_category_comes_first() -> None:
    coverage = {"factual_qa": 3, "creative": 1, "explanation": 2}
    for seed in range(20):
        chosen = QUEUE.choose(coverage, set(), random.Random(seed))
        assert chosen
        assert (chosen[0].text, chosen[1]) == ("Write three.", "creative")


def test_what_a_rater_has_seen_comes_last() -> None:
    rng, seen = random.Random(1), set[str]()
    for _ in PROMPTS:
        chosen = QUEUE.choose({}, seen, rng)
        assert chosen is not None
        assert chosen[0].text not in seen
        seen.add(snippet(chosen[0].text))
    assert QUEUE.choose({}, seen, rng) is not None


def test_over_time_every_category_is_covered_alike() -> None:
    rng, coverage = random.Random(3), dict[str, int]()
    for _ in range(60):
        chosen = QUEUE.choose(coverage, set(), rng)
        assert chosen is not None
        coverage[chosen[1]] = coverage.get(chosen[1], 0) + 1
    assert set(coverage.values()) == {20}


def test_in_a_category_the_most_informative_unseen_prompt_comes_first() -> None:
    prompts = [{"text": f"What is {n}?", "information": n / 10} for n in range(4)]
    queue = PromptQueue(VotingPlan.model_validate({"prompts": prompts}))
    rng, seen = random.Random(5), set[str]()
    order: list[str] = []
    for _ in prompts:
        chosen = queue.choose({}, seen, rng)
        assert chosen is not None
        order.append(chosen[0].text)
        seen.add(snippet(chosen[0].text))
    assert order == ["What is 3?", "What is 2?", "What is 1?", "What is 0?"]
    again = {queue.choose({}, seen, random.Random(seed)) for seed in range(20)}
    assert len(again) > 1, "one prompt alone comes again and again"


def test_an_empty_queue_has_nothing() -> None:
    queue = PromptQueue(VotingPlan())
    assert not queue
    assert queue.choose({}, set(), random.Random(1)) is None
