"""Scores of answers by a model's newest reward model, asked in bounded requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.cli.http import ask
from services.cli.probes.asking import ANSWER_TIMEOUT_S
from services.cli.settings import CliSettings
from shared.information import Score

SCORED_AT_ONCE = 200
"""Answers of one request; the service takes 256."""


def scores(
    settings: CliSettings, model: str, answers: Sequence[tuple[Sequence[dict[str, str]], str]]
) -> list[Score]:
    """A score for each answer to its conversation, in order; only differences mean something.

    Raises:
        CliError: the inference service has no reward model of this model, or gave no answer.

    """
    found: list[Score] = []
    for start in range(0, len(answers), SCORED_AT_ONCE):
        items = [
            {"messages": list(messages), "completion": answer}
            for messages, answer in answers[start : start + SCORED_AT_ONCE]
        ]
        body: dict[str, Any] = {"model": model, "items": items}
        answered = ask(
            settings, "inference", "POST", "/v1/score", body=body, timeout_s=ANSWER_TIMEOUT_S
        )
        doubts = answered.get("uncertainties") or [0.0] * len(items)
        found += map(Score, answered["scores"], doubts)
    return found
