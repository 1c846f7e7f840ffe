"""Sides of preference pairs: trained on, held out, or set apart for the evaluation's judge. Pure.

A share of raters and of prompts is set apart for the judge by a stable hash, so no hand-made panel
is needed. A rater of that share never trains. A prompt that both sides have is the judge's where
its hash is in the share, else training's; so neither side sees the other's raters or prompts.
"""

# pyright: strict
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.training.spill import SpilledTable, keep, spilled
from shared.contracts.events.preferences import PairSource
from shared.contracts.row_sources import HIGH_STAKES, IMPORT, MAX_AUGMENTED_SHARE
from shared.rater_marks import RaterRules

OF_THEIR_TIME: dict[str, Any] = {
    "judge_share": 0.0,
    "length_ratio": 0.0,
    "compared_length_ratio": None,
    "compared_sources": ("vote", "preference"),
    "similarity": 1.0,
    "rater_share": 1.0,
    "raters": {"burst": 0, "alpha": 0.0},
    "describe_quality": False,
    "describe_prompts": False,
    "describe_tenants": False,
    "judge_from_thumbs": False,
}
"""What manifests mean that were written before these rules: none of them was applied."""
COMPARED = (
    PairSource.vote.value,
    PairSource.preference.value,
    PairSource.ratings.value,
    IMPORT,
)
"""Sources of pairs both of whose answers a person judged: beside each other, or each by itself."""
FEW_RATERS = 2
"""With fewer raters than this, none can judge another: prompts alone are split."""


class DatasetRules(BaseModel):
    """What a row must be like. Kept in the manifest, as a rebuild must use the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    min_chars: int = Field(default=10, ge=0, description="both answers must be longer than this")
    heldout_share: float = Field(default=0.1, ge=0, le=0.5)
    judge_share: float = Field(
        default=0.2, ge=0, le=0.5, description="raters, and prompts, set apart for the judge"
    )
    max_age_days: float = Field(
        default=0.0, ge=0, description="older rows than this before the newest expire; 0: none do"
    )
    lag_weight: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="weight of a row for each generation that its writers are behind the parent",
    )
    lineage: tuple[str, ...] = Field(
        default=(),
        description="the parent, its parent and so on to the base: what a lag is counted by",
    )
    policies: dict[str, str] = Field(
        default_factory=dict,
        description="settings over an adapter or the base of the lineage, which lag as that does",
    )
    length_ratio: float = Field(
        default=0.5, ge=0, description="chosen answers shorter than this share of the rejected go"
    )
    compared_length_ratio: float | None = Field(
        default=0.0,
        ge=0,
        description="the same of pairs of compared_sources; null: as length_ratio",
    )
    compared_sources: tuple[str, ...] = Field(
        default=COMPARED,
        max_length=16,
        description="sources of pairs both of whose answers a person judged",
    )
    similarity: float = Field(
        default=0.8, gt=0, le=1, description="answers at least as similar go; 1: none do"
    )
    rater_share: float = Field(
        default=0.02, gt=0, le=1, description="of one rater in what is trained on; 1: no cap"
    )
    tenant_share: float = Field(default=1.0, gt=0, le=1, description="of one tenant; 1: no cap")
    label_share: float = Field(
        default=1.0, ge=0.5, le=1, description="of good or of bad answers, as KTO takes them"
    )
    raters: RaterRules = Field(default=RaterRules(), description="which choices are suspicious")
    describe_quality: bool = Field(default=True, description="pair quality is in the card")
    describe_prompts: bool = Field(
        default=True, description="evaluation prompts say their segment, locale and category"
    )
    describe_tenants: bool = Field(
        default=True,
        description="rows that are trained on say their tenant, and the card counts it",
    )
    synthetic: bool = Field(
        default=False, description="pairs of moderated generation train too; never the judge"
    )
    ai_share: float = Field(
        default=0.5, ge=0, le=1, description="of rows that an AI judge labelled, at most; 1: no cap"
    )
    augmented_share: float = Field(
        default=MAX_AUGMENTED_SHARE,
        ge=0,
        le=MAX_AUGMENTED_SHARE,
        description="of rows whose prompt was varied, at most",
    )
    people_only: tuple[str, ...] = Field(
        default=HIGH_STAKES,
        max_length=64,
        description="categories of which no row that a machine made is trained on",
    )
    judge_from_thumbs: bool = Field(
        default=True, description="KTO's judge learns from thumbs set apart, where it has no vote"
    )
    prompts: int = Field(default=200, ge=1, description="most prompts of the evaluation")


class PromptedRow(Protocol):
    """What a row's prompt is compared by."""

    @property
    def prompt_digest(self) -> bytes:
        """`digest` of the prompt's normal form."""
        ...

    @property
    def prompt_rank(self) -> float:
        """`rank` of the prompt's normal form."""
        ...


class RatedPair(PromptedRow, Protocol):
    """What decides a pair's side."""

    @property
    def raters(self) -> tuple[str, ...]:
        """Whose preference it is; empty where unknown."""
        ...

    @property
    def panel(self) -> str:
        """`judge` where the vote was asked for the judge's panel."""
        ...


P = TypeVar("P", bound=RatedPair)


@dataclass(frozen=True)
class Sides(Generic[P]):
    """Pairs by side, and how many were left out for being on both."""

    train: Collection[P]
    heldout: Collection[P]
    judge: Collection[P]
    refused: Counter[str]
    raters: int
    """Raters of `train` and `heldout`."""


def set_apart(pairs: Iterable[P], rules: DatasetRules) -> tuple[Collection[P], Collection[P]]:
    """Pairs that may be trained on, and pairs of the judge.

    A pair without a rater, and every pair where fewer than two raters are known, goes by its
    prompt. Where none or all of the raters fall into the share, one of them is set apart.
    """
    known = spilled(pairs)
    raters = {rater for pair in known if not pair.panel for rater in pair.raters}
    judging = _judging(raters, rules)

    def is_judged(pair: P) -> bool:
        if pair.panel:
            return True
        if pair.raters and len(raters) >= FEW_RATERS:
            return not judging.isdisjoint(pair.raters)
        return is_rank_of_judge(pair.prompt_rank, rules)

    return keep(known, lambda pair: not is_judged(pair)), keep(known, is_judged)


def assign(pairs: Iterable[P], judged: Iterable[P], rules: DatasetRules) -> Sides[P]:
    """The sides of pairs that may be trained on and of pairs of the judge."""
    refused: Counter[str] = Counter()
    trainable, candidates = spilled(pairs), spilled(judged)
    claimed = prompts_of(pair for pair in candidates if is_rank_of_judge(pair.prompt_rank, rules))
    kept = keep(trainable, lambda pair: pair.prompt_digest not in claimed)
    refused["prompt_of_judge"] += len(trainable) - len(kept)
    train = keep(kept, lambda pair: not pair.prompt_rank < rules.heldout_share)
    trained_prompts = prompts_of(train)
    raters = {rater for pair in kept for rater in pair.raters}
    everyone = {rater for pair in chain(trainable, candidates) for rater in pair.raters}
    by_prompt = len(everyone) < FEW_RATERS

    def may_judge(pair: P) -> bool:
        if pair.prompt_digest in trained_prompts:
            refused["judge_prompt_in_training"] += 1
            return False
        if not by_prompt and not raters.isdisjoint(pair.raters):
            refused["judge_rater_in_training"] += 1
            return False
        return True

    judge = keep(candidates, may_judge)
    heldout = keep(kept, lambda pair: pair.prompt_rank < rules.heldout_share)
    return Sides(train, heldout, judge, refused, len(raters))


def prompts_of(rows: Iterable[PromptedRow]) -> SpilledTable[bytes]:
    """Digests of the prompts of some rows."""
    prompts = SpilledTable[bytes]()
    for row in rows:
        prompts.add(row.prompt_digest)
    return prompts


def is_held_out(prompt: str, rules: DatasetRules) -> bool:
    """Whether rows of this prompt are kept for the evaluation."""
    return rank(prompt) < rules.heldout_share


def is_prompt_of_judge(prompt: str, rules: DatasetRules) -> bool:
    """Whether the judge has this prompt where training has it too."""
    return is_rank_of_judge(rank(prompt), rules)


def is_rank_of_judge(place: float, rules: DatasetRules) -> bool:
    """Whether the judge has a prompt of this rank where training has it too."""
    return 0 <= place - rules.heldout_share < rules.judge_share


def digest(*texts: str) -> bytes:
    """128 bits that stand for texts where they are compared: a tenth of the memory."""
    whole = "\0".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(whole, digest_size=16).digest()


def rank(text: str) -> float:
    """A fixed place of this text in [0, 1), evenly spread over texts."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _judging(raters: Collection[str], rules: DatasetRules) -> frozenset[str]:
    if not rules.judge_share or len(raters) < FEW_RATERS:
        return frozenset()
    places = {rater: rank(f"rater/{rater}") for rater in raters}
    judging = frozenset(name for name, place in places.items() if place < rules.judge_share)
    if 0 < len(judging) < len(raters):
        return judging
    return frozenset({min(places, key=lambda name: (places[name], name))})
