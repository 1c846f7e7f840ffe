from __future__ import annotations

import pytest

from services.training.diagnosis import adjust, diagnose
from services.training.hyperparameters import DpoHyperparameters, SftHyperparameters
from shared.contracts.events.versions import GateCheck, GateResult

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


def test_the_diagnosis_names_what_to_look_at() -> None:
    said = diagnose(
        refused("win_rate"),
        {"win_rate_high": 0.4},
        card={"counts": {"rows": 80, "prompts": 10}},
        refused={"contradictory": 40},
        attempts=2,
    )
    assert said.startswith("not improved after 2 attempts; win_rate 0.4")
    for word in ("inverted pairs", "40 contradictory", "volume: 80 pairs", "diversity: 10 prompts"):
        assert word in said
    assert "more votes of the judge's panel" in diagnose(
        refused("judge_data"), {}, card=CARD, refused={}, attempts=1
    )
    assert "lower learning_rate" in diagnose(refused("stop"), {}, card=CARD, refused={}, attempts=1)
    assert "base model" in diagnose(refused("win_rate"), {}, card=CARD, refused={}, attempts=1)
