"""Strategies of rollouts as files: YAML to a checked Strategy, and the schema for editors."""

# pyright: strict
from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from services.rollout.errors import BadStrategy
from services.rollout.strategy import KINDS, Strategy
from shared.file_faults import fault_of, load_yaml
from shared.validation import field_refusal, rule_and_remedy

_NAME = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")


class StrategyFolder:
    """The strategies that an operator names, one `<name>.yaml` each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def named(self, name: str) -> Strategy:
        """The strategy of a name.

        Raises:
            BadStrategy: there is none, or its file says something wrong.

        """
        path = self._folder / f"{name}.yaml"
        if not _NAME.match(name) or not path.is_file():
            known = ", ".join(sorted(one.stem for one in self._folder.glob("*.yaml")))
            raise field_refusal(
                BadStrategy,
                "strategy",
                f"{name} is not known",
                f"there are {known}, or send one whole",
            )
        return read(path)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a strategy file, for editors and checks before a rollout."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Strategy.model_json_schema(by_alias=True, mode="validation"),
    }


def parse(raw: object, *, source: str = "strategy") -> Strategy:
    """A strategy from what YAML or JSON gave.

    Raises:
        BadStrategy: names the field, the rule and the remedy.

    """
    if not isinstance(raw, dict):
        raise field_refusal(BadStrategy, source, "is no mapping", "write one with name and steps")
    given = dict(cast("dict[Any, Any]", raw))
    steps: object = given.get("steps")
    if isinstance(steps, list):
        given["steps"] = [
            _checked(step, f"{source}.steps.{number}")
            for number, step in enumerate(cast("list[object]", steps))
        ]
    try:
        return Strategy.model_validate(given)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False)[0]
        rule, remedy = rule_and_remedy(said)
        kinds = set(KINDS.values())  # the tag that the path of a step goes through
        path = ".".join(str(part) for part in said["loc"] if part not in kinds)
        field = f"{source}.{path}" if path else source
        raise field_refusal(BadStrategy, field, rule, remedy) from None


def _checked(step: object, field: str) -> dict[str, object]:
    """A step of one known kind; `- analysis:` with nothing behind it is the default one."""
    if not isinstance(step, dict):
        raise field_refusal(BadStrategy, field, "is no mapping", "write one such as setWeight: 5")
    given = {str(key): value for key, value in cast("dict[object, object]", step).items()}
    kinds = KINDS.keys() & given.keys()
    if len(kinds) != 1:
        raise field_refusal(
            BadStrategy,
            field,
            f"has {', '.join(given) or 'nothing'}",
            f"give it exactly one of {', '.join(KINDS)}",
        )
    kind = kinds.pop()
    if given[kind] is None and kind in ("pause", "analysis"):
        given[kind] = {}
    return given


def read(path: Path) -> Strategy:
    """A strategy from a YAML file.

    Raises:
        BadStrategy: the file cannot be read, or says something wrong.

    """
    try:
        raw: object = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise field_refusal(
            BadStrategy,
            "strategy",
            f"{path.name} cannot be read ({error.strerror})",
            "name a file that exists",
        ) from None
    except yaml.YAMLError as error:
        raise field_refusal(
            BadStrategy,
            "strategy",
            f"{path.name} is not YAML: {fault_of(error)}",
            "correct the file",
        ) from None
    return parse(raw, source=path.stem)
