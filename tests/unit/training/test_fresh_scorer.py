"""Looks at fresh votes: over real sockets, with a scorer of straw, a log in memory and the schedule."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.training import fresh_scorer, scheduler
from services.training.dataset_store import DatasetStore
from services.training.fresh_scorer import FAILURES_IN_A_ROW, LOOK_EVERY_S, FreshScorer
from services.training.jobs import JobQueue
from services.training.metrics import TrainingMetrics
from services.training.pair_index import PairIndex
from services.training.reward_freshness import MOST_VOTES, SCORED_PER_LOOK, FreshAgreement
from services.training.scheduler import LOOK_INTERVAL_S, Scheduler
from services.training.settings import TrainingSettings
from services.training.trigger import PairCounter
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted
from shared.contracts.events.training import TrainingMethod, TrainingRequested
from shared.contracts.events.versions import DatasetRef, reward_key
from shared.contracts.topics import PREFERENCES, TRAINING_JOBS, VERSIONS
from shared.http.reward_scores import RewardScores
from shared.kafka.envelope import decode, models_by_type
from shared.registry.follow import RegistryFollower
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.waiting import eventually
from tests.unit.training.builders import MODEL, pair_event, retraction, reward_record

VOTES = 220
MIN_VOTES = 100
REWARD = f"{MODEL}-reward-v1"


class StrawScorer:
    """The inference service's scores: the longer answer's is higher, or as told."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.reward_model = REWARD
        self.silent = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.status = 200
        self.refused: Callable[[str], bool] = lambda _: False
        self.agrees: Callable[[int], bool] = lambda _: True
        self.url = ""

    async def score(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer key"
        body = await request.json()
        texts = [item["completion"] for item in body["items"]]
        self.asked.append(texts)
        if self.silent:
            await asyncio.Event().wait()
        await self.gate.wait()
        if self.refused(texts[0]):
            return web.json_response({"title": "no"}, status=503)
        if self.status != 200:
            return web.json_response({"title": "no"}, status=self.status)
        agrees = self.agrees(int(texts[0].split()[-1]))
        scores = [1.0 if ("good" in text) == agrees else 0.0 for text in texts]
        return web.json_response({"reward_model": self.reward_model, "scores": scores})


class FreshHarness:
    """The schedule with its scorer, on a log with votes and a published reward model."""

    def __init__(self, settings: TrainingSettings, session: aiohttp.ClientSession) -> None:
        self.log = MemoryLog(partitions={VERSIONS: 1, TRAINING_JOBS: 1})
        self.scorer = StrawScorer()
        self.clock = ManualClock()
        self.samples = CollectorRegistry()
        self.queue = JobQueue()
        self.registry = RegistryFollower(self.log)
        self.index = PairIndex()
        metrics = TrainingMetrics(self.samples)
        self._session = session
        self._settings = settings
        self._metrics = metrics

    def begin(self) -> None:
        scores = RewardScores(self._session, (self.scorer.url,), lambda: "Bearer key")
        self.fresh = FreshScorer(
            self.log, scores, self._metrics, self.clock, MIN_VOTES, before=self.index.verdicts()
        )
        self.schedule = Scheduler(
            event_log=self.log,
            queue=self.queue,
            registry=self.registry,
            store=DatasetStore(self._settings.datasets_uri),
            settings=self._settings,
            metrics=self._metrics,
            clock=self.clock,
            index=self.index,
            fresh=self.fresh,
        )

    async def publish(self, event: PreferencePair | PreferenceRetracted) -> None:
        await self.log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)

    async def publish_reward(self, name: str, offsets: dict[str, int]) -> None:
        record = reward_record(
            name,
            dataset=DatasetRef(dataset_id="d", uri="d", sha256="0", rows=1, offsets=offsets),
            metrics={"accuracy": 0.9, "tested": 200.0},
        )
        await self.log.publish(VERSIONS, key=reward_key(name), event=record, event_id=name)
        await eventually(
            lambda: self.registry.registry.rewards(MODEL)[-1:] == (record,), "it is read"
        )

    def ends(self) -> dict[str, int]:
        """Where each partition of the pairs ends now."""
        parts = enumerate(self.log.partitions_of(PREFERENCES))
        return {f"{PREFERENCES}/{number}": len(part) for number, part in parts}

    async def all_read(self) -> None:
        """Wait until the schedule has read all pairs."""
        parts = enumerate(self.log.partitions_of(PREFERENCES))
        last = {(PREFERENCES, number): len(part) - 1 for number, part in parts if part}
        await eventually(lambda: self.index.positions() == last, "all pairs are read")

    async def voted(self) -> int:
        """Votes after a reward model; returns how many of them it never learned from."""
        offsets = self.ends()
        for number in range(VOTES):
            await self.publish(pair_event(number, raters=(f"rater-{number}",)))
        await self.publish_reward(REWARD, offsets)
        await self.all_read()
        counter = PairCounter(MODEL, self._settings.rules, index=self.index)
        return len(counter.unlearned(offsets, MOST_VOTES))

    async def look(self) -> None:
        """Let the time of a look pass, and wait until it is over."""
        self.clock.advance(max(LOOK_EVERY_S, LOOK_INTERVAL_S))
        await self.schedule.consider(asks=True)
        await eventually(lambda: not self.fresh.is_looking, "the look ends")

    def counted(self, outcome: str) -> float:
        name = "ratchet_training_fresh_votes_total"
        return self.samples.get_sample_value(name, {"outcome": outcome}) or 0.0

    def shown(self, figure: str) -> float | None:
        labels = {"model": MODEL, "figure": figure}
        return self.samples.get_sample_value("ratchet_training_reward_model_ratio", labels)

    def asked_for(self) -> list[TrainingRequested]:
        found: list[TrainingRequested] = []
        for record in self.log.all(TRAINING_JOBS):
            event = decode(record.headers, record.value, models_by_type(TrainingRequested))
            assert isinstance(event, TrainingRequested)
            found.append(event)
        return found


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[FreshHarness]:
    settings = TrainingSettings(
        datasets_uri=f"file://{tmp_path}/datasets",
        min_pairs=0,
        reward_every_days=0,
        reward_max_drift=0,
        reward_fresh_votes=MIN_VOTES,
    )
    app = web.Application()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        found = FreshHarness(settings, session)
        app.router.add_post("/v1/score", found.scorer.score)
        server = await stack.enter_async_context(TestServer(app))
        found.scorer.url = str(server.make_url(""))
        found.begin()
        for number in range(40):
            await found.publish(pair_event(1000 + number, panel="judge", raters=("judge",)))
        work = (found.registry.run(), found.schedule.count(), found.fresh.run())
        tasks = [asyncio.create_task(one) for one in work]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_vote_is_scored_once_a_bounded_number_at_a_look(harness: FreshHarness) -> None:
    await harness.voted()
    await harness.look()
    assert harness.counted("scored") == len(harness.scorer.asked) == SCORED_PER_LOOK
    assert harness.shown("fresh_accuracy") is None, "too few for the setting"
    await harness.schedule.consider(asks=True)
    assert not harness.fresh.is_looking, "the next look has its time"
    for _ in range(4):
        await harness.look()
    asked = [chosen for chosen, _ in harness.scorer.asked]
    assert len(set(asked)) == len(asked) == harness.fresh.agreement.votes
    assert MIN_VOTES <= len(asked) < VOTES, "those of the judge's raters and prompts are not asked"
    assert harness.shown("fresh_accuracy") == 1.0
    change = harness.shown("fresh_accuracy_change_high")
    assert change is not None
    assert change > 0
    assert harness.asked_for() == []


async def test_a_fall_asks_for_a_reward_training_once_and_a_new_model_is_looked_at_anew(
    harness: FreshHarness,
) -> None:
    harness.scorer.agrees = lambda number: number % 2 == 0
    await harness.voted()
    for _ in range(4):
        await harness.look()
        for job in harness.asked_for():
            harness.queue.put(job)
    (job,) = harness.asked_for()
    assert (job.method, job.actor) == (TrainingMethod.reward, "reward-schedule")
    assert f"{REWARD} agrees with" in job.reason
    fell = harness.shown("fresh_accuracy_change_high")
    assert fell is not None
    assert fell < 0
    asked = len(harness.scorer.asked)
    await harness.publish_reward(f"{MODEL}-reward-v2", harness.ends())
    await harness.look()
    assert harness.fresh.agreement == FreshAgreement(f"{MODEL}-reward-v2", 0, 0)
    assert harness.shown("fresh_accuracy") is None
    assert len(harness.scorer.asked) == asked, "no vote came since"


async def test_erased_and_withdrawn_votes_are_neither_scored_nor_counted(
    harness: FreshHarness,
) -> None:
    await harness.voted()
    await harness.look()
    scored = [int(chosen.split()[-1]) for chosen, _ in harness.scorer.asked]
    waiting = [number for number in range(VOTES) if number not in scored]
    for number in (*scored[:10], *waiting[:60]):
        await harness.publish(retraction(f"pair-{number:04}"))
    await harness.all_read()
    for _ in range(4):
        await harness.look()
    later = {int(chosen.split()[-1]) for chosen, _ in harness.scorer.asked[SCORED_PER_LOOK:]}
    assert later
    assert later.isdisjoint(waiting[:60])
    assert harness.fresh.agreement.votes == len(harness.scorer.asked) - 10


async def test_a_vote_that_is_erased_while_others_are_scored_is_not_sent(
    harness: FreshHarness,
) -> None:
    await harness.voted()
    harness.scorer.gate.clear()
    harness.clock.advance(max(LOOK_EVERY_S, LOOK_INTERVAL_S))
    await harness.schedule.consider(asks=True)
    await eventually(lambda: len(harness.scorer.asked) == 1, "the first vote is being scored")
    kept = {harness.scorer.asked[0][0].split()[-1], "0"}
    for number in range(VOTES):
        if str(number) not in kept:
            await harness.publish(retraction(f"pair-{number:04}"))
    await harness.all_read()
    harness.scorer.gate.set()
    await eventually(lambda: not harness.fresh.is_looking, "the look ends")
    assert {chosen.split()[-1] for chosen, _ in harness.scorer.asked} <= kept
    assert harness.counted("failed") == 0, "who takes a vote back makes no fault of the scorer's"


async def test_a_restart_scores_no_vote_again(
    harness: FreshHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "KEEP_S", 0.01)
    await harness.voted()
    await harness.look()
    keeping = asyncio.create_task(harness.schedule.keep())
    await eventually(
        lambda: len(harness.index.verdicts().agreed) == SCORED_PER_LOOK, "they are kept"
    )
    keeping.cancel()
    harness.begin()
    assert harness.fresh.agreement.votes == 0, "which of them stand is not known yet"
    tasks = [asyncio.create_task(one) for one in (harness.schedule.count(), harness.fresh.run())]
    try:
        await harness.look()
    finally:
        for task in (keeping, *tasks):
            task.cancel()
        await asyncio.gather(keeping, *tasks, return_exceptions=True)
    asked = [chosen for chosen, _ in harness.scorer.asked]
    assert len(set(asked)) == len(asked) == harness.fresh.agreement.votes == 2 * SCORED_PER_LOOK


async def test_a_scorer_that_is_away_refuses_or_is_slow_is_told_of_and_stops_nothing(
    harness: FreshHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.voted()
    monkeypatch.setattr(fresh_scorer, "LOOK_TIMEOUT_S", 1.0)
    with capture_logs() as logs:
        harness.scorer.silent = True
        await harness.look()
        harness.scorer.silent = False
        assert harness.counted("failed") == len(harness.scorer.asked) == 1
        monkeypatch.undo()
        harness.scorer.status = 401
        await harness.look()
        assert harness.counted("failed") == 1 + FAILURES_IN_A_ROW
        harness.scorer.status = 200
        harness.scorer.reward_model = f"{MODEL}-reward-v7"
        await harness.look()
        harness.log.available = False
        await harness.look()
        harness.log.available = True
    told = [str(entry["error"]) for entry in logs if entry["event"].endswith(".unavailable")]
    assert [
        word in one for word, one in zip(("not within", "401", "reward-v7"), told, strict=False)
    ] == [True] * 3
    assert harness.counted("scored") == 0
    harness.scorer.reward_model = REWARD
    for _ in range(5):
        await harness.look()
    assert harness.shown("fresh_accuracy") == 1.0


async def test_votes_that_the_scorer_refuses_keep_no_others_back(harness: FreshHarness) -> None:
    fresh = await harness.voted()
    harness.scorer.refused = lambda text: text.endswith("7")
    with capture_logs() as logs:
        for _ in range(6):
            await harness.look()
    refused = {chosen for chosen, _ in harness.scorer.asked if chosen.endswith("7")}
    assert refused
    assert harness.fresh.agreement.votes == fresh - len(refused)
    assert any(entry["event"] == "fresh_votes.not_scored" for entry in logs)
