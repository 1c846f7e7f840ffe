"""On-policy accounting: how far a dataset's answers are from the version that is trained. Pure.

Off-policy pairs teach less and mislead more the further their writers are from the policy, so the
share, lag and age of the rows are figures of every version.
"""

# pyright: strict
from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from services.training.sides import DatasetRules, rank
from services.training.spill import keep, spilled
from shared.contracts.row_sources import MACHINE_MADE
from shared.registry.versions import Registry

DAY_S = 86_400.0
WRITERS = ("chosen_version", "rejected_version")
NEAR_ROWS = 10
"""Least held-out rows that perplexity is measured on, where there are so many: a tenth of the pairs
that start a training."""


class WrittenRow(Protocol):
    """A row that says which versions wrote its answers."""

    @property
    def name(self) -> str:
        """Its name in the dataset."""
        ...

    @property
    def meta(self) -> Mapping[str, str]:
        """What is known of it."""
        ...


R = TypeVar("R", bound=WrittenRow)


def lineage(version: str, registry: Registry, base: str = "") -> tuple[str, ...]:
    """A version, its parent, that one's parent and so on.

    Args:
        version: The youngest; empty for none.
        registry: Knows the parents.
        base: The base that the chain stands on, whose own policy then ends the lineage; empty: the
            lineage ends in its first version.

    """
    found: list[str] = []
    while version and version not in found:
        found.append(version)
        known = registry.get(version)
        version = known.record.parent if known else ""
    return (*found, base_policy(base)) if base else tuple(found)


def base_policy(base: str) -> str:
    """The name of a base's own policy; no version's name has a colon."""
    return f"base:{base}"


def policy_of(version: str, registry: Registry) -> str:
    """The policy that a version's answers are of: a trained version, or a base.

    Settings sample from the policy of the adapter or the base that they are over. With a system
    prompt of their own they do not: a row keeps the client's conversation, and its answer was
    conditioned on more.
    """
    settings = registry.settings(version)
    if settings is None or settings.settings.system:
        return version
    if not settings.adapter_of:
        return base_policy(settings.base)
    adapter = registry.adapter(version)
    return adapter.version if adapter else version


def settings_policies(ancestors: Collection[str], registry: Registry) -> dict[str, str]:
    """Settings whose answers are of a policy of the lineage, and that policy."""
    names = sorted(one.record.version for one in registry.versions())
    found = ((name, policy_of(name, registry)) for name in names)
    return {name: policy for name, policy in found if policy != name and policy in ancestors}


def lag_of(meta: Mapping[str, str], generations: Mapping[str, int]) -> int | None:
    """Generations between the parent and the older writer of a row; None with one of no generation.

    Args:
        meta: Versions that wrote the row's answers, as `<side>_version`.
        generations: Number of each version of the lineage, the parent's being 0.

    """
    writers = {meta[side] for side in WRITERS if meta.get(side)}
    if not writers or not writers <= generations.keys():
        return None
    return max(generations[writer] for writer in writers)


def weighted(rows: Collection[R], rules: DatasetRules) -> Collection[R]:
    """Rows by their weight, `lag_weight` to the power of the lag: the share of them that is kept.

    Thinning has the same expected gradient as weights have, and needs no trainer that knows weights.
    A stable hash of the row's name decides, so a rebuild keeps the same rows. Settings over an
    adapter or the base lag as it does. A row whose lag is not known keeps its full weight.
    """
    generations = {version: number for number, version in enumerate(rules.lineage)}
    generations |= {name: generations[policy] for name, policy in rules.policies.items()}
    if rules.lag_weight >= 1:
        return rows
    return keep(
        rows,
        lambda row: (
            rank(f"lag/{row.name}") < rules.lag_weight ** (lag_of(row.meta, generations) or 0)
        ),
    )


def nearest(
    rows: Collection[Mapping[str, Any]],
    ancestors: Sequence[str],
    policy: Callable[[str], str] = str,
    least: int = NEAR_ROWS,
) -> Collection[Mapping[str, Any]]:
    """Rows nearest to the parent's policy: whole generations, newest first, until there are `least`.

    Preferred answers of an older version are worse than the parent's, so they get less likely with
    every version that improves on it. Perplexity is therefore measured on the parent's own.

    Args:
        rows: Lines of `heldout.jsonl`.
        ancestors: What `lineage` returns of the parent.
        policy: Names the policy that a version's answers are of; see `policy_of`.
        least: Rows wanted; fewer where there are no more.

    Returns:
        The rows; those of no known generation, such as an import's, come last.

    """
    generations = {version: number for number, version in enumerate(ancestors)}

    def lag(row: Mapping[str, Any]) -> float:
        known = lag_of(_policies(row.get("meta", {}), policy), generations)
        return math.inf if known is None else known

    by_lag = Counter(map(lag, rows))
    lags, count = list[float](), 0
    for one in sorted(by_lag):
        if count < least:
            lags.append(one)
            count += by_lag[one]
    return spilled(row for one in lags for row in rows if lag(row) == one)


def accounting(
    rows: Iterable[Mapping[str, Any]],
    ancestors: Sequence[str],
    asked_at: datetime,
    policy: Callable[[str], str] = str,
) -> dict[str, float]:
    """What a dataset's rows say of who wrote them, and when.

    Args:
        rows: Lines of `train.jsonl`; `meta` has versions and time where they are known.
        ancestors: What `lineage` returns of the parent.
        asked_at: When the job was asked for.
        policy: Names the policy that a version's answers are of; see `policy_of`.

    Returns:
        `data_on_policy_share`: rows of which the parent wrote both answers, or without one the base,
        among those whose writers are known. `data_policy_lag`: generations between the parent and the older of a
        row's writers, mean over rows whose writers are all ancestors. `data_age_days`: median.
        `data_<source>_share`: rows that a machine made or labelled, by source, where there are any.
        A figure without a row that tells it is left out.

    """
    generations = {version: number for number, version in enumerate(ancestors)}
    on_policy: Counter[bool] = Counter()
    lags: Counter[int] = Counter()
    ages = array("d")
    sources: Counter[str] = Counter()
    for row in rows:
        meta: Mapping[str, str] = row.get("meta", {})
        sources[meta.get("source", "")] += 1
        of_policy = _policies(meta, policy)
        if of_policy and ancestors:
            on_policy[set(of_policy.values()) == {ancestors[0]}] += 1
            lag = lag_of(of_policy, generations)
            if lag is not None:
                lags[lag] += 1
        if meta.get("created_at"):
            age_s = (asked_at - datetime.fromisoformat(meta["created_at"])).total_seconds()
            ages.append(max(0.0, age_s) / DAY_S)
    figures: dict[str, float] = {}
    if on_policy:
        figures["data_on_policy_share"] = on_policy[True] / on_policy.total()
    if lags:
        summed = sum(lag * count for lag, count in lags.items())
        figures["data_policy_lag"] = summed / lags.total()
    if ages:
        figures["data_age_days"] = statistics.median(ages)
    for source in sorted(MACHINE_MADE & sources.keys()):
        figures[f"data_{source}_share"] = sources[source] / sources.total()
    return figures


def _policies(meta: Mapping[str, str], policy: Callable[[str], str]) -> dict[str, str]:
    """A row's writers, each as the policy that its answer is of."""
    return {side: policy(meta[side]) for side in WRITERS if meta.get(side)}
