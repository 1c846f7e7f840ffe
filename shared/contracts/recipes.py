"""Training recipes: the method of a job by name, and its hyperparameters with their bounds.

Defaults suit LoRA on a small model; a job's own values win over the service's, and those over
the defaults. What a version was trained with is kept whole in its record. The JSON Schema of a
recipe file is generated from here into `recipe.schema.json`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.file_faults import fault_of, load_yaml

P = TypeVar("P", bound=BaseModel)
MethodName = Literal["sft", "dpo", "kto", "grpo", "rloo", "ppo", "online_dpo", "reward"]
GenerationName = Literal["transformers", "vllm", "auto"]
LossTerm = Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "sft"]
MAX_SEED = 2**32 - 1
"""The largest that every source of chance takes."""
NEAR = 0.6
"""Similarity from which an unknown name is taken for a mistyped one."""


class BadRecipe(ValueError):
    """A recipe that cannot be followed; the message names the field, the rule and the remedy."""


class LoraHyperparameters(BaseModel):
    """Shape of a new adapter; a parent's that is gone on from keeps its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rank: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainerHyperparameters(BaseModel):
    """What every trainer takes. An unknown name is an error, so a typing mistake is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    learning_rate: float = Field(gt=0, le=0.1)
    epochs: float = Field(gt=0, le=100)
    batch_size: int = Field(default=8, ge=1, le=1024, description="rows a step and device")
    accumulation: int = Field(default=1, ge=1, le=1024, description="steps a weight update")
    max_length: int = Field(default=512, ge=16, le=131_072, description="tokens of a row")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of steps of rising rate")
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, le=100)
    gradient_checkpointing: bool = Field(
        default=False, description="activations are computed again: less memory, a third more time"
    )
    four_bit: bool = Field(default=False, description="QLoRA: the base in NF4, by bitsandbytes")
    reasoning: bool = Field(
        default=False,
        description="train answers with what the model thought before them; the judge reads none",
    )
    lora: LoraHyperparameters = LoraHyperparameters()


class SftHyperparameters(TrainerHyperparameters):
    """Supervised fine-tuning on demonstrations."""

    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    epochs: float = Field(default=2.0, gt=0, le=100)
    batch_size: int = Field(default=16, ge=1, le=1024)
    packing: bool = Field(default=False, description="several rows in one of max_length tokens")


class DpoHyperparameters(TrainerHyperparameters):
    """Direct preference optimisation (Rafailov et al. 2023) with an SFT term on the chosen answer.

    The SFT term keeps the likelihood of chosen answers, their end-of-turn token included, from
    falling: plain DPO may raise the margin while both fall, and then generates past its end of turn.
    Other terms: `robust` (Chowdhury et al. 2024, votes flipped with probability `label_smoothing`),
    `ipo` (Azar et al. 2023), `hinge` (Zhao et al. 2023).
    """

    learning_rate: float = Field(default=3e-4, gt=0, le=0.1)
    epochs: float = Field(default=3.0, gt=0, le=100)
    beta: float = Field(default=0.1, gt=0, le=10)
    loss: tuple[LossTerm, ...] = ("sigmoid", "sft")
    loss_weights: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = (1.0, 0.3)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _one_weight_a_term(self) -> DpoHyperparameters:
        if not self.loss or len(self.loss) != len(self.loss_weights):
            raise ValueError("loss_weights: give exactly one weight for each term of loss")
        if not any(self.loss_weights):
            raise ValueError("loss_weights: one must be above 0, else nothing is learned")
        if "robust" in self.loss and not self.label_smoothing:
            raise ValueError(
                "label_smoothing: robust needs the share of flipped votes, such as 0.1"
            )
        return self


class KtoHyperparameters(TrainerHyperparameters):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): single answers, good or bad.

    Weights of zero are chosen from the data, so that both kinds weigh the same.
    """

    learning_rate: float = Field(default=3e-4, gt=0, le=0.1)
    epochs: float = Field(default=3.0, gt=0, le=100)
    batch_size: int = Field(default=8, ge=2, le=1024, description="rows a step; KTO needs two")
    beta: float = Field(default=0.1, gt=0, le=10)
    desirable_weight: float = Field(default=0.0, ge=0, le=100, description="0: from the data")
    undesirable_weight: float = Field(default=0.0, ge=0, le=100, description="0: from the data")


class OnlineHyperparameters(TrainerHyperparameters):
    """What training on answers takes that are sampled from the present policy and scored."""

    learning_rate: float = Field(default=1e-4, gt=0, le=0.1)
    epochs: float = Field(default=1.0, gt=0, le=100)
    batch_size: int = Field(default=16, ge=2, le=1024, description="answers a step and device")
    beta: float = Field(default=0.1, ge=0, le=10, description="weight of the KL to the parent")
    generations: int = Field(default=4, ge=2, le=64, description="answers a prompt")
    max_new_tokens: int = Field(default=96, ge=1, le=8192)
    temperature: float = Field(default=1.0, gt=0, le=2)
    generation: GenerationName = Field(
        default="transformers",
        description="what writes the answers; auto: vllm where a GPU and vLLM are",
    )

    @model_validator(mode="after")
    def _one_base_writes_and_learns(self) -> OnlineHyperparameters:
        if self.generation == "vllm" and self.four_bit:
            raise ValueError(
                "generation: vllm would write by a base that is not in four bits; take transformers"
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> OnlineHyperparameters:
        if self.batch_size * self.accumulation % self.generations:
            raise ValueError("batch_size: batch_size × accumulation must be whole generations")
        return self


class ClippedHyperparameters(OnlineHyperparameters):
    """What policy gradients take whose ratio of probabilities is clipped."""

    clip: float = Field(default=0.2, gt=0, lt=1, description="of the probability ratio")


class GrpoHyperparameters(ClippedHyperparameters):
    """Group relative policy optimisation (Shao et al. 2024) against the reward model."""


class RlooHyperparameters(ClippedHyperparameters):
    """REINFORCE leave-one-out (Ahmadian et al. 2024) against the reward model."""


class PpoHyperparameters(ClippedHyperparameters):
    """Proximal policy optimisation (Schulman et al. 2017) with a value head, against the reward model."""

    updates: int = Field(default=4, ge=1, le=16, description="weight updates on the same answers")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="of the advantage estimate")
    value_weight: float = Field(default=0.1, ge=0, le=10, description="of the value head's loss")


class OnlineDpoHyperparameters(OnlineHyperparameters):
    """Online DPO (Guo et al. 2024): the best and the worst of a prompt's answers are the pair."""

    @model_validator(mode="after")
    def _whole_prompts(self) -> OnlineDpoHyperparameters:
        if self.batch_size % self.generations:
            raise ValueError("batch_size: must be whole generations, as each prompt gives its pair")
        return self


class RewardHyperparameters(TrainerHyperparameters):
    """Bradley-Terry reward model: LoRA and a score head on the base, the evaluation's judge."""

    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    epochs: float = Field(default=4.0, gt=0, le=100)
    center_rewards: float = Field(default=0.01, ge=0, le=10)
    heads: int = Field(default=1, ge=1, le=16, description="score heads; their mean is the score")


HYPERPARAMETERS: dict[str, type[TrainerHyperparameters]] = {
    "sft": SftHyperparameters,
    "dpo": DpoHyperparameters,
    "kto": KtoHyperparameters,
    "grpo": GrpoHyperparameters,
    "rloo": RlooHyperparameters,
    "ppo": PpoHyperparameters,
    "online_dpo": OnlineDpoHyperparameters,
    "reward": RewardHyperparameters,
}
"""Each method's hyperparameters. Beside them a job may give the judge's, as `reward`."""


@dataclass(frozen=True)
class SearchRange:
    """How far further attempts at a job may move a hyperparameter from the recipe's value."""

    factor: float
    """Up and down."""
    low: float
    high: float
    """Bounds that only the recipe's own value may be beyond."""

    def around(self, value: float) -> tuple[float, float]:
        """The lowest and the highest value that may be tried where the recipe has this one."""
        value = value or self.low
        return (
            min(value, max(value / self.factor, self.low)),
            max(value, min(value * self.factor, self.high)),
        )


SEARCHED: dict[str, SearchRange] = {
    "learning_rate": SearchRange(factor=8, low=1e-7, high=5e-3),
    "epochs": SearchRange(factor=3, low=1, high=10),
    "beta": SearchRange(factor=5, low=0.01, high=2),
}
"""What further attempts at a job may change, where its method has it. What a step up does to a model
goes by the ratio, so all are searched by their logarithm. A factor of `epochs` is one of time, too.
"""


def search_space(recipe: TrainerHyperparameters) -> dict[str, tuple[float, float]]:
    """By name, the lowest and the highest value that further attempts at a recipe may try."""
    known = type(recipe).model_fields
    return {
        name: bounds.around(float(getattr(recipe, name)))
        for name, bounds in SEARCHED.items()
        if name in known
    }


ONLINE = ("grpo", "rloo", "ppo", "online_dpo")
"""Methods that sample from the policy and raise the score of a reward model of their own."""
CONTINUING = ("dpo", "kto", *ONLINE)
"""Methods that go on from what is served, their parent's adapter or the base, as their reference."""


class Recipe(BaseModel):
    """A recipe file: what `ratchet train --recipe FILE` asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: MethodName
    base: str = Field(default="", description="hub id or path; empty: the parent's")
    parent: str = Field(default="", description="empty: the stable version")
    dataset: str = Field(default="", description="JSONL to import; empty: a snapshot of the log")
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    hyperparameters: dict[str, Any] = Field(default_factory=dict, max_length=64)

    @model_validator(mode="after")
    def _known_hyperparameters(self) -> Recipe:
        check_hyperparameters(self.method, self.hyperparameters)
        return self


def read_recipe(text: str) -> Recipe:
    """A recipe from YAML.

    Raises:
        BadRecipe: no YAML, an unknown name or a value out of bounds.

    """
    try:
        given: object = load_yaml(text)
    except yaml.YAMLError as error:
        raise BadRecipe(f"recipe: not YAML: {fault_of(error)}") from None
    if not isinstance(given, dict):
        raise BadRecipe("recipe: an object is wanted, such as `method: dpo`")
    return parse(Recipe, cast("Mapping[str, Any]", given), what="recipe")


def merge_recipe(
    text: str | None, options: Mapping[str, Any], hyperparameters: Mapping[str, Any]
) -> Recipe:
    """A recipe's YAML, or DPO where there is none, with options and hyperparameters over it.

    Raises:
        BadRecipe: no YAML, an unknown name or a value out of bounds.

    """
    if text is None:
        own = {"hyperparameters": hyperparameters}
        return parse(Recipe, {"method": "dpo"}, options, own, what="options")
    file = read_recipe(text)
    merged = {"hyperparameters": {**file.hyperparameters, **hyperparameters}}
    return parse(Recipe, file.model_dump(), options, merged, what="recipe")


def check_hyperparameters(method: str, own: Mapping[str, Any]) -> None:
    """Refuse what a job of this method cannot be trained with.

    Raises:
        BadRecipe: an unknown name or a value out of bounds; names the field and the rule.

    """
    rest = {name: value for name, value in own.items() if name != "reward" or method == "reward"}
    parse(HYPERPARAMETERS[method], rest, also=() if method == "reward" else ("reward",))
    if method != "reward":
        parse(RewardHyperparameters, own.get("reward", {}), what="hyperparameters: reward")


def parse(
    model: type[P],
    *layers: Mapping[str, Any],
    what: str = "hyperparameters",
    also: tuple[str, ...] = (),
) -> P:
    """The parameters from layers of settings; later layers win.

    Args:
        model: What they must be.
        layers: Names with values.
        what: Begins the message.
        also: Further names that the message may suggest.

    Raises:
        BadRecipe: an unknown name or a value out of bounds; names the field, the rule and, for
            an unknown name, the nearest known one.

    """
    merged: dict[str, Any] = {}
    for layer in cast("tuple[object, ...]", layers):
        if not isinstance(layer, Mapping):
            raise BadRecipe(f"{what}: an object is wanted in place of {layer!r}")
        merged.update(cast("Mapping[str, Any]", layer))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        rules = [_rule(model, item["loc"], item["type"], item["msg"], also) for item in found]
        raise BadRecipe(f"{what}: {'; '.join(rules)}") from None


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file, with each method's hyperparameters by name."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    cases: list[dict[str, Any]] = []
    for method, model in HYPERPARAMETERS.items():
        own = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= own.pop("$defs", {})
        definitions[model.__name__] = own
        if method != "reward":
            own["properties"]["reward"] = {"$ref": "#/$defs/RewardHyperparameters"}
        chosen = {"$ref": f"#/$defs/{model.__name__}"}
        cases.append(
            {
                "if": {"properties": {"method": {"const": method}}, "required": ["method"]},
                "then": {"properties": {"hyperparameters": chosen}},
            }
        )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "allOf": cases}


def _rule(
    model: type[BaseModel],
    place: tuple[int | str, ...],
    kind: str,
    message: str,
    also: tuple[str, ...],
) -> str:
    name = ".".join(str(part) for part in place)
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{name}: {text}" if name else text
    if kind != "extra_forbidden":
        return f"{name or 'value'}: {message}"
    known = sorted({*_fields_at(model, place[:-1]), *(also if len(place) == 1 else ())})
    near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=NEAR)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{name}: unknown name; {hint}known are {', '.join(known)}"


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> tuple[str, ...]:
    """Names of the fields of a model, or of the one that lies at a place in it."""
    for part in place:
        field = model.model_fields.get(str(part))
        choices = (field.annotation, *get_args(field.annotation)) if field else ()
        inner = next(
            (one for one in choices if isinstance(one, type) and issubclass(one, BaseModel)), None
        )
        if inner is None:
            return ()
        model = inner
    return tuple(model.model_fields)
