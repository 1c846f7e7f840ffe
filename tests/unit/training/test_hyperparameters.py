from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.training.settings import TrainingSettings
from shared.contracts.recipes import BadRecipe, DpoHyperparameters, SftHyperparameters, parse


def test_a_job_wins_over_the_service_and_that_over_the_defaults() -> None:
    made = parse(DpoHyperparameters, {"beta": 0.3, "epochs": 5}, {"epochs": 2})
    assert (made.beta, made.epochs, made.batch_size) == (0.3, 2, DpoHyperparameters().batch_size)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bta": 0.1}, "bta: unknown name; did you mean beta?"),
        ({"beta": -1}, "beta: Input should be greater than 0"),
        ({"loss": ["sigmoid"]}, "one weight for each term"),
    ],
)
def test_a_wrong_value_names_field_and_rule(given: dict[str, object], said: str) -> None:
    with pytest.raises(BadRecipe, match=said):
        parse(DpoHyperparameters, given)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_TRAINING_DPO", '{"epochs": 2}')
    monkeypatch.setenv("RATCHET_TRAINING_GATE", '{"win_rate": 0.6}')
    monkeypatch.setenv("RATCHET_DATASETS_URI", "memory://datasets")
    settings = TrainingSettings.load()
    assert parse(DpoHyperparameters, settings.dpo).epochs == 2
    assert (settings.gate.win_rate, settings.datasets_uri) == (0.6, "memory://datasets")


def test_a_wrong_setting_ends_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_TRAINING_SFT", '{"epoch": 2}')
    with pytest.raises(SystemExit) as ended:
        TrainingSettings.load()
    assert ended.value.code == 2
    assert "RATCHET_TRAINING_SFT: " in capsys.readouterr().err


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        SftHyperparameters().epochs = 3  # type: ignore[misc]
