"""arena-rank's ratings of some boards, read as JSON; run in an environment that has it.

    python tests/integration/arena_rank_ratings.py < BOARDS

BOARDS is an object of lists of battles with `model_a`, `model_b`, `winner`, `position` and `length`. For
each it prints ratings and sandwich intervals of the plain model and of that with covariates, and the
effects of covariates in points, as JSON.
"""

from __future__ import annotations

import json
import sys

import pandas as pd
from arena_rank.models.bradley_terry import BradleyTerry
from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
from arena_rank.utils.data_utils import ContextualPairDataset, PairDataset

COVARIATES = ["position", "length"]


def by_version(found: dict) -> dict[str, dict[str, float]]:
    """Rating, low and high of each version."""
    columns = (found[name].tolist() for name in ("ratings", "rating_lower", "rating_upper"))
    return {
        version: {"rating": rating, "low": low, "high": high}
        for version, rating, low, high in zip(found["competitors"], *columns, strict=True)
    }


def ratings(battles: pd.DataFrame) -> dict:
    """What both models say."""
    pairs = PairDataset.from_pandas(battles)
    plain = BradleyTerry(n_competitors=len(pairs.competitors)).compute_ratings_and_cis(pairs)
    rows = ContextualPairDataset.from_pandas(
        battles, feature_cols=COVARIATES, reweighted=False, normalize_features=False
    )
    model = ContextualBradleyTerry(
        n_competitors=len(rows.competitors), n_features=len(COVARIATES), reg=0.0
    )
    controlled = model.compute_ratings_and_cis(rows)
    points = (controlled["coeffs"] * model.alpha).tolist()
    return {
        "plain": by_version(plain),
        "controlled": by_version(controlled),
        "effects": dict(zip(COVARIATES, points, strict=True)),
    }


boards = json.load(sys.stdin)
json.dump({name: ratings(pd.DataFrame(battles)) for name, battles in boards.items()}, sys.stdout)
