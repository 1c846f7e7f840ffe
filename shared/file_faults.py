"""Files that a person wrote: YAML read, and what is wrong with one in a line with its place."""

# pyright: strict
from __future__ import annotations

from typing import Any

import yaml


def load_yaml(text: str | bytes) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is no YAML, or is nested too deep to be read.

    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep; no field wants that") from None


def fault_of(error: Exception) -> str:
    """One line for an error of opening, decoding or parsing a YAML or JSON file.

    The name of the file is left to the caller, and so is what to do.
    """
    match error:
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            what = f"{error.problem}, {error.context}" if error.context else str(error.problem)
            return f"line {mark.line + 1}, column {mark.column + 1}: {what}"
        case OSError() if error.strerror:
            return error.strerror
        case UnicodeDecodeError():
            return f"byte {error.start} is no UTF-8"
        case _:
            return " ".join(str(error).split())
