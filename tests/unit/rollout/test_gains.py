"""What versions gained since the reference of the holdout, measured on the holdout."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest

from services.rollout.counters import CounterSeries
from services.rollout.daily_scores import DailyScores
from services.rollout.errors import AuditUnavailable
from services.rollout.gains import ScoreSums, since_reference, win_rate
from shared.contracts.events.quality import QualityWindow
from shared.contracts.topics import QUALITY
from shared.kafka.log import LogUnavailable
from shared.registry.deployments import Deployment, Role
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.rollout.fakes import ControllerHarness, start

DAY = datetime(2026, 1, 10, tzinfo=UTC)


def stretch(role: Role, first: float, last: float | None = None) -> Deployment:
    """A deployment between two times, in days after the first of January."""
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    until = None if last is None else begun + timedelta(days=last)
    return Deployment(role=role, since=begun + timedelta(days=first), until=until)


def scores(**of: dict[int, tuple[float, float]]) -> ScoreSums:
    """Count and sum by version and day of January."""
    return {
        (version, date(2026, 1, day)): sums
        for version, days in of.items()
        for day, sums in days.items()
    }


def test_only_days_on_which_the_reference_served_the_held_out_alone_count() -> None:
    held = [stretch("stable", 0, 4.5), stretch("holdout", 2)]
    better = [stretch("canary", 3, 4.5), stretch("stable", 4.5, 8.5)]
    every = dict.fromkeys(range(1, 12), (100.0, 50.0))
    gained = since_reference(
        better,
        held,
        ("v2", "v1"),
        scores(v1=every, v2=dict.fromkeys(range(1, 12), (1000.0, 700.0))),
        now=DAY,
        alpha=0.01,
    )
    assert gained is not None
    # The days of the sixth, seventh and eighth: v1 was stable for a part of the fifth.
    assert (gained["days"], gained["candidate_n"], gained["stable_n"]) == (3, 3_000, 300)
    assert gained["difference"] == pytest.approx(0.2)
    assert 0 < gained["low"] < 0.2 < gained["high"]


def test_without_scores_or_holdout_there_is_no_gain() -> None:
    alone = [stretch("holdout", 0)]
    mine = [stretch("stable", 0)]
    for known in ({}, scores(v1={5: (3.0, 1.0)})):
        assert since_reference(mine, alone, ("v2", "v1"), known, now=DAY, alpha=0.01) is None
    full = scores(v1={5: (3.0, 1.0)}, v2={5: (3.0, 1.0)})
    assert since_reference(mine, (), ("v2", "v1"), full, now=DAY, alpha=0.01) is None


def test_votes_count_ties_as_half_whichever_way_they_name_the_versions() -> None:
    votes = {
        ("v2", "v1", "chosen"): 60.0,
        ("v1", "v2", "chosen"): 20.0,
        ("v1", "v2", "tie"): 15.0,
        ("v2", "v1", "both_bad"): 5.0,
        ("v3", "v1", "chosen"): 99.0,
    }
    found = win_rate("v2", "v1", votes, alpha=0.01)
    assert found is not None
    assert (found["rate"], found["votes"]) == (0.7, 100)
    assert 0.5 < found["low"] < 0.7 < found["high"]
    assert win_rate("v2", "v4", votes, alpha=0.01) is None


async def test_the_api_says_what_a_version_gained_since_the_reference(
    harness: ControllerHarness, http: httpx.AsyncClient
) -> None:
    held: dict[str, Any] = {"model": "m", "share": 2, "on_behalf_of": "ann", "reason": "a year"}
    assert (await http.post("/v1/holdout", json=held)).status_code == 200
    state = await start(harness)
    await harness.round()
    path = f"/v1/rollouts/{state.rollout_id}/promote"
    assert (await http.post(path, json={"full": True, "reason": "fine"})).status_code == 200
    await harness.round()
    harness.clock.advance(2 * 86_400)
    today = harness.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    for version, total in (("v1", 500.0), ("v2", 800.0)):
        for partition in (0, 1):
            key, value = window(version, today, partition, total)
            await harness.log.append(QUALITY, key=key, value=value)
    harness.prometheus.series = [
        CounterSeries(
            {"chosen": "v2", "rejected": "v1", "result": "chosen", "partition": "0", "worker": one},
            ((1.0, 30.0),),
        )
        for one in ("a", "b")
    ]

    async def measured() -> dict[str, Any]:
        (row,) = (await http.get("/v1/versions/gain", params={"model": "m"})).json()["gains"]
        gained = row["since_reference"]
        return row if gained and gained["candidate_n"] + gained["stable_n"] == 4_000 else {}

    row = await eventually(measured, "the scores of both partitions are known")
    assert row["holdout_reference"] == "v1"
    gained = row["since_reference"]
    assert (gained["candidate_n"], gained["stable_n"]) == (2_000, 2_000)
    assert gained["difference"] == pytest.approx(0.3)
    assert gained["low"] > 0.2
    assert row["win_rate_since_reference"]["rate"] == 1
    assert row["win_rate_since_reference"]["votes"] == 30


async def test_daily_scores_are_bounded_and_are_those_of_the_newest_window() -> None:
    log = MemoryLog()
    daily_scores = DailyScores(log, max_windows=2)
    following = asyncio.create_task(daily_scores.run())
    for version, total in (("v1", 500.0), ("v2", 600.0), ("v3", 700.0), ("v3", 800.0)):
        key, value = window(version, DAY, 0, total)
        await log.append(QUALITY, key=key, value=value)
    minute = window("v3", DAY, 0, 1.0)[1].replace(b'"1d"', b'"1m"')
    await log.append(QUALITY, key="v3:1m", value=minute)
    wanted = {("v2", DAY.date()): (1_000, 600.0), ("v3", DAY.date()): (1_000, 800.0)}

    async def known() -> bool:
        return await daily_scores.sums() == wanted

    await eventually(known, "the newest two are known")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_scores_are_refused_until_they_were_read_once() -> None:
    class Unread(DailyScores):
        async def caught_up(self, timeout_s: float) -> None:
            raise LogUnavailable("not read to the end")

    with pytest.raises(AuditUnavailable, match="try again"):
        await Unread(MemoryLog()).sums()


def window(version: str, start: datetime, partition: int, total: float) -> tuple[str, bytes]:
    figures = dict.fromkeys(
        ("interactions", "errors", "interactions_with_feedback", "feedback", "positive", "negative",
         "corrections"), 0,
    )  # fmt: skip
    event = QualityWindow(
        version=version,
        window="1d",
        start=start,
        partition=partition,
        score_sum=total,
        score_count=1_000,
        **figures,
    )
    return f"{version}:1d:{start:%s}:{partition}", event.to_json()
