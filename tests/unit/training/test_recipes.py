"""Recipe files: those that ship are valid, by the code and by the JSON Schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from shared.contracts.recipes import HYPERPARAMETERS, BadRecipe, json_schema, read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "services/training/recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_by_code_and_schema(path: Path) -> None:
    recipe = read_recipe(path.read_text())
    assert path.stem.partition("-")[0] == recipe.method
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


def test_every_method_and_every_loss_of_dpo_has_a_recipe() -> None:
    shipped = [read_recipe(path.read_text()) for path in RECIPES]
    assert {recipe.method for recipe in shipped} == set(HYPERPARAMETERS)
    terms = {term for one in shipped for term in one.hyperparameters.get("loss", ())}
    assert terms == {"sigmoid", "robust", "ipo", "hinge", "sft"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: dpo\nhyperparameters: {bta: 0.1}", "bta: unknown name; did you mean beta?"),
        (
            "method: sft\nhyperparameters: {lora: {rnk: 2}}",
            "lora.rnk: unknown name; did you mean rank",
        ),
        ("method: dpo\nhyperparameters: {reward: {epoch: 2}}", "reward: epoch: unknown name"),
        ("method: grpo\nhyperparameters: {generations: 5}", "whole generations"),
        ("methd: dpo", "did you mean method?"),
        ("method: magic", "method: Input should be 'sft'"),
        ("- dpo", "an object is wanted"),
        ("method: [", "not YAML"),
        ("[" * 20_000, "not YAML: it is nested too deep"),
        ("method: dpo\nseed: -1", "seed: Input should be greater than or equal to 0"),
        ("method: dpo\nseed: 4294967296", "seed: Input should be less than or equal to 4294967295"),
        (
            "method: dpo\nhyperparameters: {loss_weights: [-1, 1]}",
            "loss_weights.0: Input should be greater than or equal to 0",
        ),
        (
            "method: dpo\nhyperparameters: {loss_weights: [.nan, 1]}",
            "loss_weights.0: Input should be",
        ),
        ("method: dpo\nhyperparameters: {loss_weights: [0, 0]}", "one must be above 0"),
    ],
)
def test_a_wrong_recipe_names_field_rule_and_remedy(text: str, said: str) -> None:
    with pytest.raises(BadRecipe) as error:
        read_recipe(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "dpo", "hyperparameters": {"bta": 1}},
        {"method": "kto", "hyperparameters": {"batch_size": 1}},
        {"method": "sft", "hyperparameters": {"beta": 1}},
        {"method": "dpo", "hyperparameters": {"reward": {"epoch": 1}}},
        {"epochs": 2},
    ],
)
def test_the_schema_refuses_what_the_code_refuses(given: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given, json_schema())
