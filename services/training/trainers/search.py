"""Search of a job's next hyperparameters: Optuna's TPE sampler, told of every attempt so far.

The study is built anew from the request each time and kept nowhere, so a job that was killed is
given the same answer again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.training.trainers.job import SEARCH_REQUEST, Progress, SearchRequest, TrainerJob

DIGITS = 3
"""Significant digits of a value: enough to tell runs apart, and the same on every machine."""


def run(_: TrainerJob, folder: Path, __: Progress) -> dict[str, Any]:
    """Answer the request of the folder; returns `parameters`, the values to try next by name."""
    asked = SearchRequest.model_validate_json((folder / SEARCH_REQUEST).read_bytes())
    return {"parameters": suggest(asked)}


def suggest(asked: SearchRequest) -> dict[str, float]:
    """The values to try next: where attempts that fell short by little are dense.

    Tree-structured Parzen estimator (Bergstra et al. 2011; multivariate: Falkner et al. 2018), which
    draws at random before ten trials by default. There are never ten, so it begins at once.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bounds = {
        name: optuna.distributions.FloatDistribution(low, high, log=True)
        for name, (low, high) in asked.space.items()
    }
    sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=asked.seed)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for one in asked.trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(one.parameters), distributions=dict(bounds), value=one.shortfall
            )
        )
    chosen = study.ask(dict(bounds)).params
    return {name: float(f"{value:.{DIGITS}g}") for name, value in chosen.items()}
