"""Diagnosis of a refused candidate: adjusted hyperparameters for a retry, or the reason."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping

from services.training.hyperparameters import DpoHyperparameters, SftHyperparameters
from shared.contracts.events.versions import GateResult

NO_DATA = frozenset({"judge_data", "judge", "prompts"})
TOO_FAR = frozenset({"perplexity", "stop", "length_low", "length_high", "repetition"})
MAX_BETA = 2.0
MAX_EPOCHS = 10.0
MAX_LEARNING_RATE = 5e-3
FEW_ROWS = 100
FEW_PROMPTS_SHARE = 0.3
NOISY_SHARE = 0.15


def adjust(
    parameters: DpoHyperparameters | SftHyperparameters,
    gate: GateResult,
    figures: Mapping[str, float],
) -> DpoHyperparameters | SftHyperparameters | None:
    """Parameters worth another try, or None where none would help.

    Too far from the parent (perplexity, stopping, length, repetition): half the rate, fewer
    epochs, a higher beta. Not better though near it, or too near to be told apart: a higher rate
    and more epochs. Worse beyond doubt, or nothing to judge by: no parameter cures that.
    """
    failed = {check.name for check in gate.checks if not check.passed}
    if not failed or failed & NO_DATA:
        return None
    if failed & TOO_FAR:
        return _gentler(parameters)
    if "distinct" not in failed and isinstance(parameters, SftHyperparameters):
        return None
    if figures.get("win_rate_high", 1.0) < 0.5:
        return None
    return parameters.model_copy(
        update={
            "learning_rate": min(parameters.learning_rate * 1.5, MAX_LEARNING_RATE),
            "epochs": min(parameters.epochs * 1.5, MAX_EPOCHS),
        }
    )


def _gentler(
    parameters: DpoHyperparameters | SftHyperparameters,
) -> DpoHyperparameters | SftHyperparameters:
    update: dict[str, float] = {
        "learning_rate": parameters.learning_rate / 2,
        "epochs": max(1.0, parameters.epochs * 2 / 3),
    }
    if isinstance(parameters, DpoHyperparameters):
        update["beta"] = min(parameters.beta * 1.5, MAX_BETA)
    return parameters.model_copy(update=update)


def diagnose(
    gate: GateResult,
    figures: Mapping[str, float],
    *,
    card: Mapping[str, Mapping[str, int]],
    refused: Mapping[str, int],
    attempts: int,
) -> str:
    """Why no attempt was good enough, for people: failed checks, then what they point to."""
    failed = [check for check in gate.checks if not check.passed]
    names = {check.name for check in failed}
    said = [f"not improved after {attempts} attempt{'s' if attempts != 1 else ''}"]
    if not attempts:
        said = ["not trained, as nothing could have passed the gate"]
        failed = [check for check in failed if check.value is not None]
    said += [
        f"{check.name} {'no data' if check.value is None else f'{check.value:.3g}'} ({check.detail})"
        for check in failed
    ]
    counts = card.get("counts", {})
    rows = counts.get("rows", 0)
    lost = int(figures.get("not_finite", 0))
    if lost:
        said.append(
            f"divergence: {lost} figure{'s were no finite numbers' if lost > 1 else ' was no finite number'}; "
            "lower learning_rate or max_grad_norm, the judge's (reward) too"
        )
    if "judge_data" in names or ("prompts" in names and not lost):
        said.append("volume: collect more votes of the judge's panel and more prompts")
    if "judge" in names and "judge_accuracy_low" in figures:
        said.append(
            "pair quality: the judge and the raters do not agree; look at the panels' votes"
        )
    if figures.get("win_rate_high", 1.0) < 0.5:
        said.append(
            "pair quality: the data teach what other raters dislike; look for inverted pairs"
        )
    noisy = refused.get("contradictory", 0)
    if rows and noisy / (rows + noisy) > NOISY_SHARE:
        said.append(f"pair quality: {noisy} contradictory pairs were left out")
    if rows < FEW_ROWS:
        said.append(f"volume: {rows} pairs; {FEW_ROWS} or more are usual")
    if rows and counts.get("prompts", 0) / rows < FEW_PROMPTS_SHARE:
        said.append(f"diversity: {counts.get('prompts', 0)} prompts in {rows} pairs")
    if names & TOO_FAR:
        said.append("hyperparameters: lower learning_rate or epochs, or raise beta")
    elif names & {"win_rate", "win_rate_low"} and rows >= FEW_ROWS:
        said.append("hyperparameters or base model: the data did not move this model enough")
    return "; ".join(said)
