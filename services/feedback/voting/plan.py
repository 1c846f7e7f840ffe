"""The voting plan: a YAML file with the model, daily goal, categories and queue of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from services.feedback.voting.annotation_rules import AnnotationRules
from services.feedback.voting.categories import (
    DEFAULT_CATEGORIES,
    OTHER,
    CategoryName,
    QuestionCategory,
    classify,
)
from shared.contracts.events.base import Message, Name, OptionalIdentifier
from shared.file_faults import fault_of, load_yaml

MAX_PLAN_BYTES = 4 * 1024 * 1024
MAX_PROMPTS = 10_000
MAX_VERSIONS = 20
MAX_BEFORE = 32
MAX_QUESTION = 4_000
"""Longest question in characters, a rater's own included."""


class PlanUnreadable(Exception):
    """The plan's file cannot be read or breaks a rule; the message names file, field and rule."""


class EarlierTurn(BaseModel):
    """A turn of a conversation before the question."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1, max_length=MAX_QUESTION)]


class QueuedPrompt(BaseModel):
    """A prompt of the queue; its category is the classifier's where none is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    text: Annotated[str, Field(min_length=1, max_length=MAX_QUESTION)]
    before: Annotated[tuple[EarlierTurn, ...], Field(max_length=MAX_BEFORE)] = Field(
        default=(), description="the conversation that the text goes on"
    )
    category: CategoryName | None = None
    information: float = Field(
        default=0.0, ge=0, le=1, description="what a vote on it would tell; higher ones come first"
    )

    @property
    def turns(self) -> tuple[Message, ...]:
        """The whole conversation, the question last."""
        earlier = (Message(role=turn.role, content=turn.content) for turn in self.before)
        return (*earlier, Message(role="user", content=self.text))


class VotingPlan(BaseModel):
    """What raters are asked, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: OptionalIdentifier = Field(
        default="", description="the model voted on; empty: the first that has a stable version"
    )
    versions: Annotated[tuple[Name, ...], Field(max_length=MAX_VERSIONS)] = Field(
        default=(), description="compared with each other; empty: stable and its candidate"
    )
    goal: int = Field(default=100, ge=1, le=2_000, description="votes of one rater and day")
    max_tokens: int = Field(default=512, ge=1, le=8192, description="of each answer")
    guidelines: str = Field(default="", max_length=10_000, description="Markdown, for raters")
    categories: Annotated[tuple[QuestionCategory, ...], Field(min_length=1, max_length=30)] = (
        DEFAULT_CATEGORIES
    )
    prompts: Annotated[tuple[QueuedPrompt, ...], Field(max_length=MAX_PROMPTS)] = ()
    annotation: AnnotationRules = AnnotationRules()

    @field_validator("prompts", mode="before")
    @classmethod
    def _texts_are_prompts(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
        return [{"text": one} if isinstance(one, str) else one for one in items]

    @model_validator(mode="after")
    def _categories_are_known(self) -> VotingPlan:
        if len(self.versions) == 1 or len(set(self.versions)) < len(self.versions):
            raise ValueError("versions: name two or more different versions, or none")
        names = [one.name for one in self.categories]
        if len(set(names)) != len(names):
            raise ValueError("categories: a name stands twice; name each category once")
        known = {*names, OTHER}
        for index, prompt in enumerate(self.prompts):
            if prompt.category is not None and prompt.category not in known:
                raise ValueError(
                    f"prompts.{index}.category: {prompt.category} is not one of "
                    f"{', '.join(sorted(known))}; add it to categories"
                )
        if strange := self.annotation.high_stakes - known:
            raise ValueError(
                f"annotation.high_stakes: {', '.join(sorted(strange))} is not one of "
                f"{', '.join(sorted(known))}; add it to categories"
            )
        return self

    @property
    def category_names(self) -> tuple[str, ...]:
        """All categories, OTHER last."""
        names = [one.name for one in self.categories]
        return (*names, *([] if OTHER in names else [OTHER]))

    def category_of(self, question: str, named: str = "") -> str:
        """The category a rater named, else the classifier's."""
        return named if named in self.category_names else classify(question, self.categories)


def load_plan(path: Path | None) -> VotingPlan:
    """The plan of a file; without one, the defaults and an empty queue.

    Raises:
        PlanUnreadable: the file is missing, no YAML, too large, or breaks a rule.

    """
    if path is None:
        return VotingPlan()
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PLAN_BYTES + 1)
        if len(text) > MAX_PLAN_BYTES:
            raise PlanUnreadable(f"{path}: is larger than {MAX_PLAN_BYTES} bytes; shorten prompts")
        return VotingPlan.model_validate(load_yaml(text) or {})
    except OSError as error:
        raise PlanUnreadable(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise PlanUnreadable(f"{path}: is no YAML: {fault_of(error)}") from None
    except ValidationError as error:
        raise PlanUnreadable(f"{path}: {'; '.join(_rules(error))}") from None


def _rules(error: ValidationError) -> list[str]:
    found: list[str] = []
    for item in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        found.append(f"{place}: {message}" if place else message)
    return found
