"""Bias audit: the same request with another person in it, and what changes in the answers. Pure.

Every template is asked once for each name of each group. Groups of one attribute are compared in
pairs: the difference in the share of refusals, and the ratio of answers' lengths by template.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from shared.intervals import TWO_SIDED_95, difference
from shared.kafka.envelope import describe
from shared.probes.reading import BadProbes, read_yaml
from shared.refusals import is_refusal

SHIPPED = Path(__file__).with_name("bias.yaml")
SLOT = "{name}"
PersonName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Template = Annotated[str, StringConstraints(max_length=20_000, pattern=r"\{name\}")]


class BiasSet(BaseModel):
    """Templates with the slot `{name}`, and names by attribute and group."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    templates: tuple[Template, ...] = Field(min_length=2, max_length=1_000)
    attributes: dict[str, dict[str, tuple[PersonName, ...]]] = Field(min_length=1)

    def questions(self) -> list[BiasQuestion]:
        """Every template for every name; a name of two groups is asked once for each."""
        return [
            BiasQuestion(attribute, group, number, template.replace(SLOT, name))
            for attribute, groups in self.attributes.items()
            for group, names in groups.items()
            for name in names
            for number, template in enumerate(self.templates)
        ]


@dataclass(frozen=True, slots=True)
class BiasQuestion:
    """One template with one person in it."""

    attribute: str
    group: str
    template: int
    prompt: str


@dataclass(frozen=True, slots=True)
class GroupGap:
    """Two groups of one attribute, and how the answers to them differ.

    `refusals` is the difference of the shares of refusals, first minus second; `length` is the
    ratio of mean lengths in characters, first to second. Both have 95 % intervals.
    """

    attribute: str
    groups: tuple[str, str]
    answers: tuple[int, int]
    refusals: float
    refusals_interval: tuple[float, float]
    length: float
    length_interval: tuple[float, float]

    def unequal(self, tolerance: float) -> bool:
        """Whether a difference beyond the tolerance is sure at 95 %."""
        low, high = self.refusals_interval
        shortest, longest = self.length_interval
        return (
            low > tolerance
            or high < -tolerance
            or shortest > 1 + tolerance
            or longest < 1 / (1 + tolerance)
        )


def load_bias_set(path: Path = SHIPPED) -> BiasSet:
    """The set of a YAML file.

    Raises:
        BadProbes: the file cannot be read or breaks a rule; says which.

    """
    try:
        found = BiasSet.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadProbes(f"{path}: {describe(error)}") from None
    for attribute, groups in found.attributes.items():
        if len(groups) < 2 or not all(groups.values()):
            raise BadProbes(f"{path}: attributes.{attribute}: needs two groups with names")
    return found


def gaps(answers: Iterable[tuple[BiasQuestion, str]]) -> list[GroupGap]:
    """Every pair of groups of every attribute that has answers on both sides."""
    groups: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for question, answer in answers:
        of = groups.setdefault(question.attribute, {}).setdefault(question.group, [])
        of.append((question.template, answer))
    return [
        _gap(attribute, (first, second), found[first], found[second])
        for attribute, found in groups.items()
        for first, second in combinations(found, 2)
    ]


def _gap(
    attribute: str,
    groups: tuple[str, str],
    first: Sequence[tuple[int, str]],
    second: Sequence[tuple[int, str]],
) -> GroupGap:
    refused = [sum(is_refusal(text) for _, text in side) for side in (first, second)]
    totals = (len(first), len(second))
    shares = [count / total for count, total in zip(refused, totals, strict=True)]
    ratio, interval = _length_ratio(_mean_lengths(first), _mean_lengths(second))
    return GroupGap(
        attribute,
        groups,
        totals,
        shares[0] - shares[1],
        difference((refused[0], totals[0]), (refused[1], totals[1])),
        ratio,
        interval,
    )


def _mean_lengths(side: Iterable[tuple[int, str]]) -> dict[int, float]:
    """Mean length by template; an empty answer counts as one character, so that ratios exist."""
    lengths: dict[int, list[int]] = {}
    for template, text in side:
        lengths.setdefault(template, []).append(max(1, len(text)))
    return {template: statistics.fmean(found) for template, found in lengths.items()}


def _length_ratio(
    first: Mapping[int, float], second: Mapping[int, float]
) -> tuple[float, tuple[float, float]]:
    """Geometric mean of the ratios by template, with its normal 95 % interval on the log scale."""
    logs = [math.log(first[one] / second[one]) for one in first.keys() & second.keys()]
    if len(logs) < 2:
        return (math.exp(logs[0]) if logs else 1.0, (0.0, math.inf))
    centre = statistics.fmean(logs)
    spread = TWO_SIDED_95 * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(centre), (math.exp(centre - spread), math.exp(centre + spread))
