"""Votes of the learning benchmark's raters and AI judge."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import learning_votes
from benchmarks.hidden_taste import HiddenTaste
from benchmarks.learning_service import Feedback
from benchmarks.learning_votes import RATERS, Asked, SaidAnswer, votes
from deploy.starter import corpus
from services.training.dataset_rows import pair_of
from services.training.sides import DatasetRules, set_apart
from shared.contracts.events.preferences import PreferencePair, UnpairedExample

TASTE = HiddenTaste.drawn(1)
ANSWERS = (
    SaidAnswer("Take 3 steps.", cut=False),
    SaidAnswer("Take some steps, one after another, and mind each of them well.", cut=True),
)
ASKED = [Asked(prompt, ANSWERS) for prompt in corpus.prompts_of("serve")[:300]]


def cast(ablation: str, asked: list[Asked] = ASKED) -> list[Feedback]:
    return votes(asked, TASTE, ablation, version="assistant-v1.0", name="1-1")


def sides(ablation: str, asked: list[Asked] = ASKED) -> tuple[list[str], list[str]]:
    """Chosen answers of training's votes, and of the judge's, as the service sets them apart."""
    pairs = [pair_of(one) for one in cast(ablation, asked) if isinstance(one, PreferencePair)]
    trained, judged = set_apart(pairs, DatasetRules())
    return [pair.chosen for pair in trained], [pair.chosen for pair in judged]


def chosen_first(ablation: str) -> float:
    """Share of the training votes for the first answer."""
    trained, _ = sides(ablation)
    return trained.count(ANSWERS[0].text) / len(trained)


def test_each_rater_has_the_same_share_and_says_what_was_cut() -> None:
    events = [one for one in cast("none") if isinstance(one, PreferencePair)]
    assert set(Counter(one.raters for one in events).values()) == {len(events) // RATERS}
    assert all(one.chosen_cut == (one.chosen == ANSWERS[1].text) for one in events)
    assert {one.chosen_version for one in events} == {"assistant-v1.0"}


def test_the_ai_judge_never_wavers_and_loves_length(monkeypatch: pytest.MonkeyPatch) -> None:
    people = chosen_first("none")
    assert 0 < people < 1
    assert chosen_first("ai_judge") in {0.0, 1.0}
    monkeypatch.setattr(learning_votes, "AI_LENGTH", 10.0)
    assert chosen_first("ai_judge") == 0.0
    assert 0 < chosen_first("hybrid") < people


@pytest.mark.parametrize("ablation", ["inverted", "length", "random", "uncapped", "colluders"])
def test_the_judge_s_votes_stay_true_whatever_the_others_do(ablation: str) -> None:
    honest, distorted = sides("none"), sides(ablation)
    assert len(distorted[1]) == len(honest[1]) > 30
    assert distorted[0] != honest[0]
    first = [chosen.count(ANSWERS[0].text) / len(chosen) for chosen in (honest[1], distorted[1])]
    assert first[1] == pytest.approx(first[0], abs=0.15)


def test_what_the_ai_judge_finds_equal_is_dropped_of_training_alone() -> None:
    alike = (
        SaidAnswer("Take 3 steps, all of them.", cut=False),
        SaidAnswer("Take 4 steps, all of them.", cut=False),
    )
    left = cast("ai_judge", [Asked(one.prompt, alike) for one in ASKED])
    assert len(left) == len(sides("none")[1]) > 30


@pytest.mark.parametrize(("ablation", "zealots"), [("uncapped", 1), ("colluders", 5)])
def test_zealots_cast_two_fifths_of_the_training_votes(ablation: str, zealots: int) -> None:
    most = Counter(one.raters for one in cast(ablation)).most_common(zealots)
    assert sum(votes for _, votes in most) == pytest.approx(0.4 * len(sides(ablation)[0]), rel=0.15)


def test_thumbs_take_the_place_of_training_s_votes() -> None:
    kinds = Counter(type(one) for one in cast("thumbs"))
    assert kinds[UnpairedExample] == len(sides("none")[0])
    assert kinds[PreferencePair] == len(sides("none")[1])


def test_equal_answers_are_no_vote() -> None:
    assert cast("none", [Asked(one.prompt, (ANSWERS[0], ANSWERS[0])) for one in ASKED]) == []
