"""Voter counts: what each tenant and API key adds to a rollout's arms, by bounded labels.

The judge leaves one voter at a time out by them, so that no verdict rests on one (design section
7), and shows each one's share.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from shared.voters import VoterKind, VoterLabels

FIGURES = ("requests", "failures", "crashes", "slow", "streams", "stalls", "capped")
"""What is counted of a voter, as the judge counts it of an arm."""
VoterSeries = tuple[str, str, str, str, VoterKind, str]
"""model, version, arm, rollout, kind of voter, voter"""


class VoterCounts:
    """Counts by arm and voter, of rollouts alone."""

    def __init__(self) -> None:
        self._labels = VoterLabels()
        self._counts: dict[VoterSeries, dict[str, int]] = {}

    def add(
        self, path: tuple[str, str, str, str], *, tenant: str, key: str, figures: tuple[str, ...]
    ) -> None:
        """Add one to each of the figures, for the tenant and for the key.

        Args:
            path: model, version, arm and rollout.
            tenant: its name.
            key: the API key's id.
            figures: of `FIGURES`.

        """
        voters: tuple[tuple[VoterKind, str], ...] = (("tenant", tenant), ("key", key))
        for kind, name in voters:
            series = (*path, kind, self._labels.label(kind, name))
            counts = self._counts.get(series)
            if counts is None:
                counts = self._counts[series] = dict.fromkeys(FIGURES, 0)
            for figure in figures:
                counts[figure] += 1

    def drop_rollout(self, rollout: str) -> None:
        """Forget a rollout's counts."""
        self._counts = {key: kept for key, kept in self._counts.items() if key[3] != rollout}

    def families(self, router: str) -> Iterator[Metric]:
        """The exposition."""
        attempts = CounterMetricFamily(
            "ratchet_router_voter_attempts",
            "Attempts of a rollout by tenant and by API key; the judge leaves one of them out",
            labels=("model", "version", "arm", "rollout", "by", "voter", "router", "figure"),
        )
        for series, counts in self._counts.items():
            for figure, count in counts.items():
                attempts.add_metric((*series, router, figure), count)
        yield attempts
