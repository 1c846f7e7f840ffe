"""Content filter rules: words and patterns that answers must not hold, by tenant and model. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.contracts.events.base import Identifier, Untrainable
from shared.contracts.events.interactions import FilterAction
from shared.file_faults import fault_of, load_yaml
from shared.kafka.envelope import describe

LOOK_BACK = 512
"""Longest match in characters that is found for sure where a text comes in pieces."""
MAX_RULES = 64
MASK = "[FILTERED]"
FILTERED = "content_filter"
"""`finish_reason` of a refused answer in the OpenAI API."""
TRIE_DEPTH = 8
"""Characters of phrases that share one way through the expression; `re` bounds its nesting."""

_SEVERITY = (FilterAction.flag, FilterAction.mask, FilterAction.block)

Word = Annotated[str, Field(min_length=1, max_length=LOOK_BACK // 2)]


class Match(NamedTuple):
    """A place in a text, and the rule that found it."""

    start: int
    end: int
    rule: FilterRule


class FilterRule(BaseModel):
    """One rule: whole words or phrases in any case, or a regular expression of Python's `re`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Identifier
    action: FilterAction
    words: tuple[Word, ...] = Field(default=(), max_length=10_000)
    regex: str = Field(default="", max_length=2_000)
    tenants: tuple[Identifier, ...] = Field(default=(), description="none: all")
    models: tuple[Identifier, ...] = Field(default=(), description="none: all")

    @model_validator(mode="after")
    def _check(self) -> FilterRule:
        if bool(self.words) == bool(self.regex):
            raise ValueError("give either words or a regex")
        try:
            found = self.pattern().search("") or self.pattern().search(MASK)
        except re.error as error:
            raise ValueError(f"regex: {error}") from None
        if found is not None:
            raise ValueError(f"it matches an empty text or the mask, {MASK!r}")
        return self

    def pattern(self) -> re.Pattern[str]:
        """What finds the rule's matches; `re` keeps compiled patterns."""
        if self.regex:
            return re.compile(self.regex)
        phrases = [
            tuple(atom for word in phrase.split() for atom in (r"\s+", *map(re.escape, word)))[1:]
            for phrase in self.words
        ]
        return re.compile(rf"(?<!\w)(?:{_any_of(phrases)})(?!\w)", re.IGNORECASE)


def _any_of(phrases: Sequence[tuple[str, ...]], depth: int = TRIE_DEPTH) -> str:
    """An expression for any of the phrases, each a row of expressions: a trie of its first ones.

    `re` tries alternatives one after the other: of ten thousand, each token would take 5 ms.
    """
    if len(phrases) == 1 or not depth:
        return "|".join(map("".join, phrases))
    tails: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for phrase in phrases:
        tails.setdefault(phrase[:1], []).append(phrase[1:])
    return "|".join(
        f"{''.join(head)}(?:{_any_of(rest, depth - 1)})" for head, rest in tails.items()
    )


class _RuleFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rules: tuple[FilterRule, ...] = Field(max_length=MAX_RULES)


class RuleSet:
    """The rules that apply to one tenant and model."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Iterable[FilterRule]) -> None:
        self._rules = [(rule, rule.pattern()) for rule in rules]

    def matches(self, text: str, begin: int = 0, *, whole: bool = True) -> list[Match]:
        """All matches that start at `begin` or later, by their start.

        Where more text may follow (not `whole`), one that ends with the text waits: it might be a
        longer one, or the beginning of another word.
        """
        found = [
            Match(match.start(), match.end(), rule)
            for rule, pattern in self._rules
            for match in pattern.finditer(text, begin)
            if match.end() > match.start() and (whole or match.end() < len(text))
        ]
        return sorted(found, key=lambda match: match[:2])


@dataclass(slots=True)
class FilterFindings:
    """What was found in one answer: the rules' names, and the severest action taken."""

    action: FilterAction | None = None
    rules: dict[str, FilterAction] = field(default_factory=dict)

    @property
    def blocked(self) -> bool:
        """Whether the answer is refused."""
        return self.action is FilterAction.block

    @property
    def untrainable(self) -> tuple[str, ...]:
        """Why an answer is kept out of training: the client did not see what the model wrote."""
        return () if self.action is FilterAction.flag else (Untrainable.filtered.value,)

    def take(self, matches: Sequence[Match]) -> None:
        """Note matches."""
        for match in matches:
            self.add(match.rule.name, match.rule.action)

    def add(self, name: str, action: FilterAction) -> None:
        """Note what was found, and what is done about it."""
        self.rules[name] = action
        known = -1 if self.action is None else _SEVERITY.index(self.action)
        if _SEVERITY.index(action) > known:
            self.action = action

    def row(self) -> dict[str, Any]:
        """The findings as the event has them."""
        return {"action": self.action, "rules": sorted(self.rules)[:MAX_RULES]}


class FilterRules:
    """All rules of a file."""

    def __init__(self, rules: Sequence[FilterRule] = ()) -> None:
        self._rules = tuple(rules)
        self._sets: dict[tuple[FilterRule, ...], RuleSet] = {}

    @classmethod
    def read(cls, path: Path) -> FilterRules:
        """The rules of a YAML file: `rules: [{name, action, words or regex, tenants, models}]`.

        Raises:
            ValueError: it cannot be read, or a rule is wrong; the message names which.

        """
        try:
            value: Any = load_yaml(path.read_text(encoding="utf-8"))
            return cls(_RuleFile.model_validate(value).rules)
        except ValidationError as error:
            raise ValueError(f"{path}: {describe(error)}") from None
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: {fault_of(error)}") from None

    def of(self, tenant: str, model: str) -> RuleSet | None:
        """The rules for a tenant's answers from a model; None where there are none."""
        if not self._rules:
            return None
        found = tuple(
            rule
            for rule in self._rules
            if (not rule.tenants or tenant in rule.tenants)
            and (not rule.models or model in rule.models)
        )
        if not found:
            return None
        if found not in self._sets:
            # As many sets as combinations of rules that name tenants and models.
            self._sets[found] = RuleSet(found)
        return self._sets[found]


def masked(text: str, matches: Sequence[Match]) -> str:
    """The text with each match, overlapping ones together, replaced."""
    parts: list[str] = []
    at = 0
    for start, end in spans(match[:2] for match in matches):
        parts += (text[at:start], MASK)
        at = end
    return "".join((*parts, text[at:]))


def spans(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places sorted by their start; overlapping ones are one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(places):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
