from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from services.training.adjustment import Direction, Tried, direction
from services.training.diagnosis import diagnose
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import DpoHyperparameters, SftHyperparameters, search_space

DPO = DpoHyperparameters()
CARD = {"counts": {"rows": 300, "prompts": 280}}


def refused(*names: str) -> GateResult:
    checks = tuple(GateCheck(name=name, passed=False, value=0.4, limit=1.0) for name in names)
    return GateResult(passed=False, checks=checks)


def say(
    *names: str,
    figures: dict[str, float] | None = None,
    method: TrainingMethod = TrainingMethod.dpo,
    card: dict[str, dict[str, int]] = CARD,
    attempts: int = 1,
    contradictory: int = 0,
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> str:
    found = diagnose(
        refused(*names),
        figures or {},
        method=method,
        card=card,
        refused={"contradictory": contradictory, **left_out},
        tried=[Tried(DPO, "recipe", refused(*names))] * attempts,
        space=search_space(DPO),
    )
    return "; ".join(found)


def test_the_diagnosis_names_what_to_look_at() -> None:
    few = {"counts": {"rows": 80, "prompts": 10}}
    said = say("win_rate", figures={"win_rate_high": 0.4}, card=few, contradictory=40, attempts=2)
    assert said.startswith("not improved after 2 attempts; win_rate 0.4")
    for word in ("inverted pairs", "40 contradictory", "volume: 80 pairs", "diversity: 10 prompts"):
        assert word in said
    assert "set apart for the judge" in say("judge_data")
    assert "lower learning_rate" in say("stop")
    assert "base model" in say("win_rate")


def test_rows_that_were_left_out_are_told_where_they_are_many() -> None:
    card = {"counts": {"rows": 282, "prompts": 282}}
    said = say("win_rate", card=card, left_out={"too_short": 110, "duplicate": 8})
    assert "volume: 118 of 400 rows were left out (110 too_short, 8 duplicate)" in said
    assert "ratchet dataset show" in said
    assert "left out" not in say("win_rate", card=card, left_out={"too_short": 8})


def test_a_bound_alone_that_is_missed_wants_more_prompts() -> None:
    measured = {"prompts": 86.0, "win_rate": 0.587, "win_rate_low": 0.482, "win_rate_high": 0.685}
    said = say("win_rate_low", figures=measured)
    assert "86 held-out prompts leave the win rate between 48% and 68%" in said
    assert "rows of more prompts" in said
    assert "did not move" not in said


@pytest.mark.parametrize("names", [("distinct",), ("distinct", "perplexity"), ("distinct", "stop")])
@pytest.mark.parametrize("method", [TrainingMethod.dpo, TrainingMethod.sft])
def test_a_model_that_hardly_moved_is_never_told_to_go_slower(
    names: tuple[str, ...], method: TrainingMethod
) -> None:
    said = say(*names, figures={"distance_to_parent": 0.005, "train_loss": 6.77}, method=method)
    assert "hardly moved the model (0.005 nats); raise learning_rate or epochs" in said
    assert "lower" not in said
    given = SftHyperparameters() if method is TrainingMethod.sft else DPO
    assert direction(given, refused(*names), {}) is Direction.bolder


def test_sft_has_words_of_its_own() -> None:
    said = say("perplexity", method=TrainingMethod.sft, card={"counts": {"rows": 9, "prompts": 9}})
    assert said.startswith("not good enough after 1 attempt")
    assert "volume: 9 demonstrations" in said
    assert "held-out demonstrations became less likely; lower learning_rate" in said
    assert "beta" not in said
    endless = say("stop", method=TrainingMethod.sft)
    assert "not learnt to end its answers; raise epochs" in endless
    assert direction(SftHyperparameters(), refused("stop"), {}) is Direction.bolder


def test_what_was_not_trained_is_told_what_data_it_lacks_and_no_hyperparameter() -> None:
    said = say("heldout", "prompts", "judge_data", attempts=0)
    assert said.startswith("not trained, as nothing could have passed the gate")
    assert "rows of more prompts are needed, or a higher heldout_share" in said
    assert "hyperparameters" not in said


def test_no_figures_point_to_no_hyperparameter() -> None:
    assert "hyperparameters:" not in say("perplexity", figures={"not_finite": 3.0})


def test_each_attempt_is_told_with_its_parameters_and_the_nearest_one_is_named() -> None:
    bold = DPO.model_copy(update={"learning_rate": 4.5e-4, "epochs": 4.5})
    near = GateResult(
        passed=False, checks=(GateCheck(name="win_rate", passed=False, value=0.5, limit=0.55),)
    )
    told = diagnose(
        near,
        {},
        method=TrainingMethod.dpo,
        card=CARD,
        refused={},
        tried=[Tried(DPO, "recipe", near), Tried(bold, "rule", refused("kl", "stop"))],
        space=search_space(DPO),
    )
    assert told[0] == "not improved after 2 attempts"
    assert told[-1] == (
        "attempts: 1 by recipe (learning_rate 0.0003 epochs 3 beta 0.1) short by 0.09, "
        "2 by rule (learning_rate 0.00045 epochs 4.5 beta 0.1) short by 1.20; "
        "the checks above are of attempt 1, the nearest to passing"
    )
    assert not any(text.startswith("attempts: ") for text in say("win_rate").split("; "))
