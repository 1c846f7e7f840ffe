"""What the next attempt changes: the rule's direction and steps, the space, and what a search is asked."""

from __future__ import annotations

import pytest

from services.training.adjustment import (
    AROUND,
    Direction,
    Tried,
    directed,
    direction,
    nearest,
    search_request,
    step,
)
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import (
    HYPERPARAMETERS,
    DpoHyperparameters,
    GrpoHyperparameters,
    SftHyperparameters,
    TrainerHyperparameters,
    search_space,
)

DPO = DpoHyperparameters()
SPACE = search_space(DPO)


def check(name: str, value: float | None, limit: float) -> GateCheck:
    return GateCheck(name=name, passed=False, value=value, limit=limit)


def refused(*checks: GateCheck | str) -> GateResult:
    made = [check(one, 0.4, 1.0) if isinstance(one, str) else one for one in checks]
    return GateResult(passed=False, checks=tuple(made))


def tried(parameters: TrainerHyperparameters, *names: str, by: str = "rule") -> Tried:
    gate = refused(*names)
    return Tried(parameters, by, gate, direction(parameters, gate, {}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["perplexity", "stop", "length_low", "length_high", "repetition", "kl", "cases", "safety"],
)
def test_too_far_and_forgotten_mean_gentler(name: str) -> None:
    assert direction(DPO, refused(name, "win_rate"), {}) is Direction.gentler
    assert direction(DPO, refused(name), {}) is Direction.gentler


def test_not_better_means_bolder() -> None:
    gate = refused("win_rate", "win_rate_low")
    assert direction(DPO, gate, {"win_rate_high": 0.6}) is Direction.bolder


@pytest.mark.parametrize(
    ("names", "figures"),
    [
        (("judge_data", "win_rate"), {}),
        (("judge",), {}),
        (("prompts",), {}),
        (("heldout",), {}),
        (("win_rate", "win_rate_low"), {"win_rate_high": 0.45}),
    ],
)
def test_what_no_parameter_cures_is_not_tried_again(
    names: tuple[str, ...], figures: dict[str, float]
) -> None:
    assert direction(DPO, refused(*names), figures) is None


def test_steps_raise_rate_and_epochs_or_lower_them_and_raise_beta() -> None:
    bold = step(DPO, Direction.bolder, SPACE)
    assert (bold.learning_rate, bold.epochs) == pytest.approx((4.5e-4, 4.5))
    gentle = step(DPO, Direction.gentler, SPACE)
    assert isinstance(gentle, DpoHyperparameters)
    assert (gentle.learning_rate, gentle.epochs) == pytest.approx((1.5e-4, 2.0))
    assert gentle.beta == pytest.approx(0.15)
    sft = step(SftHyperparameters(), Direction.gentler, search_space(SftHyperparameters()))
    assert sft.learning_rate == pytest.approx(5e-4)


@pytest.mark.parametrize("method", sorted(HYPERPARAMETERS))
@pytest.mark.parametrize("way", list(Direction))
def test_every_step_of_every_method_stays_in_the_space_and_in_the_recipes_bounds(
    method: str, way: Direction
) -> None:
    recipe = HYPERPARAMETERS[method]()
    space = search_space(recipe)
    assert {"learning_rate", "epochs"} <= space.keys() <= {"learning_rate", "epochs", "beta"}
    for corner in (0, 1):
        ends = {name: bounds[corner] for name, bounds in space.items()}
        type(recipe).model_validate(recipe.model_dump() | ends)
    now = recipe
    for _ in range(30):
        now = step(now, way, space)
        for name, (low, high) in space.items():
            assert 0 < low <= getattr(now, name) <= high


@pytest.mark.parametrize(
    ("own", "name", "bounds"),
    [
        ({}, "learning_rate", (3e-4 / 8, 3e-4 * 8)),
        ({}, "epochs", (1.0, 9.0)),
        ({}, "beta", (0.02, 0.5)),
        ({"learning_rate": 0.05}, "learning_rate", (0.05 / 8, 0.05)),
        ({"epochs": 0.5}, "epochs", (0.5, 1.5)),
        ({"epochs": 20}, "epochs", (20 / 3, 20.0)),
    ],
)
def test_the_space_is_around_the_recipes_own_value_and_never_without_it(
    own: dict[str, float], name: str, bounds: tuple[float, float]
) -> None:
    recipe = DpoHyperparameters.model_validate(own)
    assert search_space(recipe)[name] == pytest.approx(bounds)


def test_a_bolder_step_never_lowers_a_rate_that_is_beyond_the_usual_bound() -> None:
    high = DpoHyperparameters(learning_rate=0.05)
    assert step(high, Direction.bolder, search_space(high)).learning_rate == 0.05
    short = DpoHyperparameters(epochs=0.5)
    assert step(short, Direction.gentler, search_space(short)).epochs == 0.5


def test_the_rule_goes_on_in_one_direction_and_leaves_to_the_search_what_it_would_turn_back_in() -> (
    None
):
    first = tried(DPO, "win_rate", by="recipe")
    bold = directed([first], SPACE)
    assert bold == step(DPO, Direction.bolder, SPACE)
    assert bold is not None
    again = directed([first, tried(bold, "win_rate")], SPACE)
    assert again == step(bold, Direction.bolder, SPACE)
    assert directed([first, tried(bold, "kl")], SPACE) is None


def test_a_rule_at_its_bounds_and_one_that_has_been_searched_for_leave_it_to_the_search() -> None:
    edge = DPO.model_copy(update={name: high for name, (_, high) in SPACE.items()})
    assert directed([tried(edge, "win_rate")], SPACE) is None
    found = tried(DPO, "win_rate", by="search")
    assert directed([tried(DPO, "win_rate", by="recipe"), found], SPACE) is None


def test_a_shortfall_is_the_missed_share_of_each_limit_and_at_most_one_a_check() -> None:
    passed = GateCheck(name="stop", passed=True, value=0.9, limit=0.5)
    gate = refused(check("win_rate", 0.44, 0.55), check("kl", 1.5, 1.0), passed)
    assert Tried(DPO, "recipe", gate).shortfall == pytest.approx(0.2 + 0.5)
    gate = refused(check("kl", 80.0, 1.0), check("win_rate", None, 0.55), check("cases", 0.1, 0.0))
    assert Tried(DPO, "recipe", gate).shortfall == 3.0


def test_of_equals_the_first_attempt_is_the_nearest() -> None:
    far, near = refused("kl", "stop"), refused("kl")
    all_tried = [Tried(DPO, "recipe", far), Tried(DPO, "rule", near), Tried(DPO, "search", near)]
    assert nearest(all_tried) == 1


def test_a_search_is_asked_for_the_box_around_the_attempts_and_told_of_each() -> None:
    first = tried(DPO, "win_rate", by="recipe")
    second = tried(step(DPO, Direction.bolder, SPACE), "kl", "stop")
    asked = search_request([first, second], SPACE, seed=7)
    assert asked.space["learning_rate"] == pytest.approx((3e-4 / AROUND, 4.5e-4 * AROUND))
    assert asked.space["beta"] == pytest.approx((0.1 / AROUND, 0.1 * AROUND))
    assert asked.trials[1].parameters == second.searched(SPACE)
    assert [one.shortfall for one in asked.trials] == [first.shortfall, second.shortfall]
    assert asked.seed == 9
    assert search_request([first, second], SPACE, seed=7) == asked
    assert search_request([first, second], SPACE, seed=8) != asked
    assert 0 <= search_request([first], SPACE, seed=-5).seed < 2**32


def test_the_box_stays_in_the_space_and_takes_a_beta_of_zero_for_the_lowest() -> None:
    free = GrpoHyperparameters(beta=0)
    space = search_space(free)
    asked = search_request([tried(free, "win_rate", by="recipe")], space, seed=0)
    for name, (low, high) in asked.space.items():
        assert space[name][0] <= low <= asked.trials[0].parameters[name] <= high <= space[name][1]
    assert asked.trials[0].parameters["beta"] == space["beta"][0] > 0
