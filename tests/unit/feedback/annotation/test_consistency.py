"""Label consistency: agreement as a metric, per tenant for people, of all for Prometheus."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry

from services.feedback.annotation.board import AnnotationBoard
from services.feedback.annotation.consistency import LabelConsistency
from services.feedback.voting.annotation_rules import AnnotationRules
from shared.contracts.events.annotations import AnnotatorRole
from shared.testing.clock import ManualClock
from tests.support.annotations import given, item


async def test_agreement_is_a_metric_from_the_first_label_on() -> None:
    registry, board = CollectorRegistry(), AnnotationBoard(AnnotationRules())
    consistency = LabelConsistency(board, registry, ManualClock())

    def value(name: str, **labels: str) -> float:
        found = registry.get_sample_value(f"ratchet_label_consistency_{name}", labels)
        assert found is not None
        return found

    assert math.isnan(value("raw_ratio"))
    assert value("items") == 0
    for number, label in enumerate(("left", "right", "left", "tie")):
        board.apply(item(f"i{number}"))
        board.apply(given("rosa", label, f"i{number}"))
        board.apply(given("otto", "left" if number else label, f"i{number}"))
        board.apply(given("judge", "right", f"i{number}", role=AnnotatorRole.model))
    await consistency.update()
    assert value("items") == 4
    assert value("raw_ratio") == pytest.approx(0.5)
    assert value("alpha", bound="low") <= value("alpha", bound="value")
    assert consistency.of("default").items == 4
    assert consistency.of("acme").items == 0
    board.apply(given("dora", "left", "i3"))
    await consistency.update()
    assert consistency.of("default").raters == 3
