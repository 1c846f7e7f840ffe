"""Label consistency (requirement F7): agreement of the queue's raters as a live metric."""

from __future__ import annotations

import asyncio
import math

from prometheus_client import CollectorRegistry, Gauge

from services.feedback.annotation.board import AnnotationBoard
from shared.agreement import Agreement, RaterLabel, agreement
from shared.clock import Clock

UPDATE_S = 10.0
BOOTSTRAPS = 200
"""Of a live interval: a fifth of a report's, as ingestion shares the interpreter with it."""
ALL_TENANTS = ""
"""No tenant is called so; metrics are of all of them."""


class LabelConsistency:
    """Agreement on the items that the board keeps, at most UPDATE_S seconds old."""

    def __init__(self, board: AnnotationBoard, registry: CollectorRegistry, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._seen: dict[str, list[RaterLabel]] = {}
        self._agreements: dict[str, Agreement] = {}
        alpha = Gauge(
            "ratchet_label_consistency_alpha",
            "Krippendorff's alpha of raters in the annotation queue, and its 95 % interval.",
            ("bound",),
            registry=registry,
        )
        self._alpha = {bound: alpha.labels(bound) for bound in ("value", "low", "high")}
        self._raw = Gauge(
            "ratchet_label_consistency_raw_ratio",
            "Share of pairs of labels of one item that are equal.",
            registry=registry,
        )
        self._items = Gauge(
            "ratchet_label_consistency_items",
            "Items that several raters labelled.",
            registry=registry,
        )
        self._export()

    def of(self, tenant: str) -> Agreement:
        """Agreement of a tenant's raters."""
        return self._agreements.get(tenant, _NOTHING)

    async def follow(self) -> None:
        """Keep agreement and its metrics current until cancelled."""
        while True:
            await self.update()
            await self._clock.sleep(UPDATE_S)

    async def update(self) -> None:
        """Compute agreement where labels came; in a thread, as the bootstrap takes a moment."""
        by_tenant = self._board.rater_labels()
        everybody = [label for labels in by_tenant.values() for label in labels]
        for tenant, labels in {**by_tenant, ALL_TENANTS: everybody}.items():
            if labels != self._seen.get(tenant):
                self._agreements[tenant] = await asyncio.to_thread(
                    agreement, labels, bootstraps=BOOTSTRAPS
                )
                self._seen[tenant] = labels
        self._export()

    def _export(self) -> None:
        found = self.of(ALL_TENANTS)
        values = {"value": found.alpha, "low": found.low, "high": found.high}
        for bound, value in values.items():
            self._alpha[bound].set(math.nan if value is None else value)
        self._raw.set(math.nan if found.raw is None else found.raw)
        self._items.set(found.items)


_NOTHING = agreement([])
