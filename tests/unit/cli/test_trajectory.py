"""Improvement over versions: the chain, satisfaction, win rates and the plot."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.cli.version_trajectory import page
from services.cli.weekly_page import html
from shared.contracts.events.quality import QualityWindow
from shared.contracts.events.versions import (
    DatasetRef,
    Fingerprint,
    GateResult,
    Lifecycle,
    VersionRecord,
    VersionState,
)
from shared.ranking.board import RankedVote
from shared.ranking.standings import rank
from shared.registry.deployments import Deployments
from shared.registry.routing import RoutingState
from shared.registry.versions import Version
from shared.reports.trajectory import TrajectoryRow, chain, plot, rows
from shared.reports.weekly import Weekly, count_preferences

START = datetime(2026, 11, 1, tzinfo=UTC)


def version(name: str, parent: str = "", *, stable: bool = False, **metrics: float) -> Version:
    record = VersionRecord(
        version=name,
        model="m",
        method="dpo",
        base="b",
        parent=parent,
        adapter_uri="x",
        adapter_sha256="0" * 64,
        fingerprint=Fingerprint(dtype="float32", texts=()),
        dataset=DatasetRef(dataset_id="d", uri="u", sha256="0", rows=1),
        hyperparameters={},
        seed=0,
        code_revision="c",
        metrics=metrics,
        gate=GateResult(passed=True),
        job_id="j",
        created_at=START,
    )
    state = Lifecycle.stable if stable else Lifecycle.retired
    moved = VersionState(version=name, model="m", state=state, token=0, at=START)
    return Version(record=record, state=moved)


def window(name: str, score_sum: float, score_count: int, **more: Any) -> QualityWindow:
    fields: dict[str, Any] = {
        "window": "1d",
        "start": START,
        "partition": 0,
        **dict.fromkeys(
            (
                "interactions",
                "errors",
                "interactions_with_feedback",
                "feedback",
                "positive",
                "negative",
                "corrections",
            ),
            0,
        ),
    }
    return QualityWindow(
        version=name, score_sum=score_sum, score_count=score_count, **(fields | more)
    )


CHAIN = [
    version("m-v1.0", candidate_length=20.0),
    version("m-v1.1", "m-v1.0", stable=True, win_rate=0.6, candidate_length=22.0),
    version("m-v1.2", "m-v1.0"),
]


def told(**more: Any) -> tuple[TrajectoryRow, ...]:
    given: dict[str, Any] = {"windows": [], "ranking": None, "deployments": Deployments()}
    return rows(chain(CHAIN), **(given | more))


def test_the_chain_leads_from_the_first_version_to_the_stable_one_or_the_one_named() -> None:
    assert [one.record.version for one in chain(CHAIN)] == ["m-v1.0", "m-v1.1"]
    assert [one.record.version for one in chain(CHAIN, "m-v1.2")] == ["m-v1.0", "m-v1.2"]
    assert chain(CHAIN, "nobody") == []
    unstable = [version("m-v1.0"), version("m-v1.1", "m-v1.0")]
    assert [one.record.version for one in chain(unstable)] == ["m-v1.0", "m-v1.1"]


def test_satisfaction_is_one_to_five_over_all_days_and_the_later_window_counts() -> None:
    tomorrow = START + timedelta(days=1)
    windows = [
        window("m-v1.0", 5.0, 10),
        window("m-v1.1", 1.0, 10),
        window("m-v1.1", 9.0, 10),  # the same day again, after late feedback
        window("m-v1.1", 6.0, 10, start=tomorrow),
        window("m-v1.1", 99.0, 99, window="1h"),
    ]
    first, second = told(windows=windows)
    assert (first.satisfaction, first.improvement) == (3.0, 0.0)
    assert (second.satisfaction, second.scores) == (4.0, 20)
    assert second.improvement == pytest.approx(1.0)


def test_figures_to_beat_and_of_the_record_stand_beside_ours() -> None:
    first, second = told()
    assert (first.satisfaction_to_beat, first.win_rate_to_beat) == (3.5, None)
    assert (second.satisfaction_to_beat, second.win_rate_to_beat) == (3.8, 0.58)
    assert (second.win_rate_parent, second.mean_length) == (0.6, 22.0)
    assert (second.satisfaction, second.win_rate_first) == (None, None)


def test_the_win_rate_over_the_first_is_that_of_the_votes() -> None:
    votes = [RankedVote("m-v1.1", "m-v1.0", "left")] * 70
    votes += [RankedVote("m-v1.1", "m-v1.0", "right")] * 30
    _, second = told(ranking=rank(votes, bootstraps=10))
    assert second.win_rate_first == pytest.approx(0.7, abs=0.01)
    assert second.votes == 100


def test_versions_that_votes_never_linked_have_no_win_rate() -> None:
    votes = [RankedVote("m-v1.1", "other", "left"), RankedVote("m-v1.0", "third", "left")]
    _, second = told(ranking=rank(votes, bootstraps=10))
    assert second.win_rate_first is None


def test_the_day_of_the_first_traffic_is_shown() -> None:
    deployments = Deployments()
    deployments.apply(RoutingState(model="m", stable="m-v1.0", token=0, seq=0, at=START))
    assert [one.deployed for one in told(deployments=deployments)] == ["2026-11-01", None]


def test_the_plot_has_a_dot_for_each_figure_and_is_in_both_pages() -> None:
    found = told(windows=[window("m-v1.0", 5.0, 10), window("m-v1.1", 9.0, 10)])
    drawn = ET.fromstring(plot(found))
    heights = [float(one.get("cy", "")) for one in drawn.iter("circle")]
    assert len(heights) == 2
    assert heights[1] < heights[0], "better is higher"
    assert "4.6" in page("m", found)
    counted = count_preferences([], set(), START)
    week = Weekly(START.date(), START.date(), 1, counted, (), (), (), trajectories={"m": found})
    assert html(week).count("<svg") == 2
    assert "m-v1.1" in html(week)
