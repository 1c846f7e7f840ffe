"""Which pairs train, are held out, or are set apart for the judge."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.training.dataset_rows import Pair
from services.training.sides import DatasetRules, Sides, assign, set_apart
from tests.unit.training.builders import pair, turns

RULES = DatasetRules()
some_pairs = st.lists(
    st.builds(
        lambda number, prompt, raters: pair(
            number, messages=turns(f"question {prompt}"), raters=tuple(raters)
        ),
        st.integers(0, 10_000),
        st.integers(0, 30),
        st.lists(st.integers(0, 20).map("rater {}".format), max_size=2),
    ),
    max_size=60,
)


def sides(pairs: list[Pair], rules: DatasetRules = RULES) -> Sides[Pair]:
    return assign(*set_apart(pairs, rules), rules)


def raters(pairs: object) -> set[str]:
    return {rater for one in pairs for rater in one.raters}  # type: ignore[attr-defined]


def prompts(pairs: object) -> set[str]:
    return {one.prompt for one in pairs}  # type: ignore[attr-defined]


@given(some_pairs)
def test_judge_and_training_share_no_prompt_and_no_rater(pairs: list[Pair]) -> None:
    found = sides(pairs)
    trained = [*found.train, *found.heldout]
    assert not prompts(found.train) & prompts(found.judge)
    assert not prompts(found.train) & prompts(found.heldout)
    if len(raters(pairs)) > 1:
        assert not raters(trained) & raters(found.judge)
    kept = len(found.train) + len(found.heldout) + len(found.judge)
    assert kept + found.refused.total() == len(pairs)


def test_ordinary_votes_give_the_judge_its_share_without_a_panel() -> None:
    pairs = [pair(n, raters=(f"user-{n % 100}",)) for n in range(1000)]
    found = sides(pairs)
    assert 100 <= len(found.judge) <= 300
    assert len(found.train) + len(found.heldout) >= 600
    assert not sides(pairs, DatasetRules(judge_share=0.0)).judge


def test_prompts_that_everybody_has_are_split_by_their_hash() -> None:
    pairs = [
        pair(n, messages=turns(f"question {n % 40}"), raters=(f"user-{n % 97}",))
        for n in range(2000)
    ]
    found = sides(pairs)
    assert len(found.judge) > 50
    assert len(found.train) > 700
    assert found.refused["prompt_of_judge"] > 0
    assert found.refused["judge_prompt_in_training"] > 0


def test_a_rater_keeps_its_side_while_others_come() -> None:
    def side(count: int) -> set[str]:
        return raters(sides([pair(n, raters=(f"user-{n}",)) for n in range(count)]).judge)

    assert side(200) <= side(400)


def test_the_first_few_raters_have_a_judge_among_them() -> None:
    for first in range(30):
        pairs = [pair(n, raters=(f"user-{first + n % 2}",)) for n in range(40)]
        found = sides(pairs)
        assert found.judge, first
        assert found.train, first


def test_a_lone_rater_and_nameless_ones_are_split_by_prompt() -> None:
    for names in (("me",), ()):
        found = sides([pair(n, raters=names) for n in range(300)])
        assert 30 <= len(found.judge) <= 100
        assert len(found.train) >= 170


def test_a_vote_of_the_panel_is_the_judges_whoever_cast_it() -> None:
    found = sides([pair(n, panel="judge", raters=(f"p{n}",)) for n in range(20)])
    assert len(found.judge) == 20


def test_the_order_of_pairs_changes_no_side() -> None:
    pairs = [pair(n, raters=(f"user-{n % 7}",), messages=turns(f"{n % 9}")) for n in range(90)]
    first, second = sides(pairs), sides(pairs[::-1])
    assert {one.pair_id for one in first.judge} == {one.pair_id for one in second.judge}
    assert first.refused == second.refused
