from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from services.training.diagnosis import adjust, diagnose
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import DpoHyperparameters, SftHyperparameters

DPO = DpoHyperparameters()
CARD = {"counts": {"rows": 300, "prompts": 280}}


def refused(*names: str) -> GateResult:
    checks = tuple(GateCheck(name=name, passed=False, value=0.4, limit=1.0) for name in names)
    return GateResult(passed=False, checks=checks)


@pytest.mark.parametrize("name", ["perplexity", "stop", "length_low", "length_high", "repetition"])
def test_too_far_means_gentler(name: str) -> None:
    better = adjust(DPO, refused(name, "win_rate"), {})
    assert isinstance(better, DpoHyperparameters)
    assert better.learning_rate < DPO.learning_rate
    assert better.epochs < DPO.epochs
    assert better.beta > DPO.beta


def test_not_better_means_bolder() -> None:
    better = adjust(DPO, refused("win_rate", "win_rate_low"), {"win_rate_high": 0.6})
    assert isinstance(better, DpoHyperparameters)
    assert better.learning_rate > DPO.learning_rate
    assert better.epochs > DPO.epochs


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
    assert adjust(DPO, refused(*names), figures) is None


def test_sft_can_only_be_gentler() -> None:
    sft = SftHyperparameters()
    better = adjust(sft, refused("perplexity"), {})
    assert isinstance(better, SftHyperparameters)
    assert better.learning_rate < sft.learning_rate


def test_adjusted_parameters_stay_in_their_bounds() -> None:
    bold: DpoHyperparameters | SftHyperparameters | None = DPO
    gentle: DpoHyperparameters | SftHyperparameters | None = DPO
    for _ in range(30):
        assert bold is not None
        assert gentle is not None
        bold = adjust(bold, refused("win_rate"), {})
        gentle = adjust(gentle, refused("stop"), {})
    assert isinstance(bold, DpoHyperparameters)
    assert isinstance(gentle, DpoHyperparameters)
    DpoHyperparameters.model_validate(bold.model_dump())
    DpoHyperparameters.model_validate(gentle.model_dump())


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
        attempts=attempts,
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
    better = adjust(given, refused(*names), {})
    assert better is not None
    assert better.learning_rate > given.learning_rate


def test_sft_has_words_of_its_own() -> None:
    said = say("perplexity", method=TrainingMethod.sft, card={"counts": {"rows": 9, "prompts": 9}})
    assert said.startswith("not good enough after 1 attempt")
    assert "volume: 9 demonstrations" in said
    assert "held-out demonstrations became less likely; lower learning_rate" in said
    assert "beta" not in said
    endless = say("stop", method=TrainingMethod.sft)
    assert "not learnt to end its answers; raise epochs" in endless
    better = adjust(SftHyperparameters(), refused("stop"), {})
    assert better is not None
    assert better.epochs > SftHyperparameters().epochs


def test_what_was_not_trained_is_told_what_data_it_lacks_and_no_hyperparameter() -> None:
    said = say("heldout", "prompts", "judge_data", attempts=0)
    assert said.startswith("not trained, as nothing could have passed the gate")
    assert "rows of more prompts are needed, or a higher heldout_share" in said
    assert "hyperparameters" not in said


def test_no_figures_point_to_no_hyperparameter() -> None:
    assert "hyperparameters:" not in say("perplexity", figures={"not_finite": 3.0})
