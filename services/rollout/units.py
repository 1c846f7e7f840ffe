"""Durations, weights and shares as a strategy file writes them, with their JSON Schemas."""

# pyright: strict
from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from shared.contracts.events.base import WEIGHT_SCALE

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*$")
_PERCENT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%?\s*$")


def _seconds(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (found := _DURATION.match(value)):
        return float(found[1]) * UNITS_S[found[2] or "s"]
    raise ValueError("a duration is a number of seconds or a text such as 24h, 30m, 45s")


def _basis_points(value: object) -> object:
    found = _PERCENT.match(str(value)) if not isinstance(value, bool) else None
    if found is None:
        raise ValueError("a weight is a percentage such as 5 or 0.5")
    points = float(found[1]) * WEIGHT_SCALE / 100
    if abs(points - round(points)) > 1e-9:
        raise ValueError("a weight has at most two decimals: it is kept in hundredths of a percent")
    return round(points)


def _share(value: object) -> object:
    if isinstance(value, str) and value.rstrip().endswith("%"):
        found = _PERCENT.match(value)
        if found is None:
            raise ValueError("a share is a number such as 0.05 or a text such as 5%")
        return float(found[1]) / 100
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0, le=366 * 86400),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 366 * 86400},
                {"type": "string", "pattern": _DURATION.pattern},
            ],
            "description": "seconds, or a text such as 24h, 30m, 45s",
        },
        mode="validation",
    ),
]
Weight = Annotated[
    int,
    BeforeValidator(_basis_points),
    Field(ge=0, le=WEIGHT_SCALE),
    PlainSerializer(lambda points: points * 100 / WEIGHT_SCALE, return_type=float),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 100},
                {"type": "string", "pattern": _PERCENT.pattern},
            ],
            "description": "percent, with at most two decimals",
        },
        mode="validation",
    ),
]
"""Percent in the file, basis points in the program."""
Share = Annotated[
    float,
    BeforeValidator(_share),
    Field(gt=0, lt=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%\s*$"},
            ],
            "description": "a share such as 0.05 or 5%",
        },
        mode="validation",
    ),
]
