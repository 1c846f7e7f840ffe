"""The voting page on a port of its own: real HTTP, twins behind it, a router that tests steer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web

from services.feedback.annotation.service import AnnotationService
from services.feedback.api import create_app
from services.feedback.pair_choice import PairChoice
from services.feedback.voting.ballots import RaterBallots
from services.feedback.voting.invites import Invites, Rater
from services.feedback.voting.mount import VotingOptions, mount_voting
from services.feedback.voting.page import VotingPage
from services.feedback.voting.plan import VotingPlan
from services.feedback.voting.rater_store import (
    CountedVote,
    PendingComparison,
    by_showing,
    day_of,
    newest_first,
    won_by,
)
from services.feedback.voting.sessions import SignIn
from shared.clock import SystemClock
from shared.contracts.topics import FEEDBACK
from shared.http.reward_scores import RewardScores
from shared.information import DRAWN_SHARE
from shared.keys import KeyRing
from shared.redaction.detection import Redact
from shared.redaction.redactor import Redactor
from shared.registry.routing import RoutingTable
from shared.testing.log import MemoryLog
from tests.support.annotations import MemoryLeases
from tests.support.feedback import MemoryComparisons, answering, event_of, feedback_parts
from tests.support.rollouts import set_routing
from tests.support.waiting import eventually

SECRET = "a secret of the tests that is long enough"
RATER = Rater("default", "rosa")
PLAN = VotingPlan.model_validate(
    {
        "goal": 100,
        "guidelines": "Prefer the answer that is **right**; among right ones, the shorter one.",
        "prompts": [
            "What is the capital of France?",
            "Explain why the sky is blue.",
            "Write a slogan for a bakery.",
            "My parcel is late. How can I find it?",
            "Compare tea and coffee.",
        ],
    }
)


class MemoryRaters:
    """RaterStore in dicts."""

    def __init__(self) -> None:
        self.open: dict[Rater, dict[str, PendingComparison]] = {}
        self.days: dict[tuple[Rater, date], dict[str, CountedVote]] = {}
        self.counts: dict[tuple[str, date], dict[str, int]] = {}
        self.won: dict[str, dict[tuple[str, str], float]] = {}

    async def pending(self, rater: Rater) -> list[PendingComparison]:
        return by_showing(self.open.get(rater, {}).values())

    async def add(self, rater: Rater, pending: PendingComparison) -> None:
        self.open.setdefault(rater, {})[pending.comparison_id] = pending

    async def show(self, rater: Rater, comparison_id: str, at: datetime) -> datetime:
        pending = self.open[rater][comparison_id]
        shown_at = pending.shown_at or at
        self.open[rater][comparison_id] = pending.model_copy(update={"shown_at": shown_at})
        return shown_at

    async def drop(self, rater: Rater, comparison_id: str) -> None:
        self.open.get(rater, {}).pop(comparison_id, None)

    async def count(self, rater: Rater, vote: CountedVote) -> None:
        votes = self.days.setdefault((rater, day_of(vote.at)), {})
        if vote.comparison_id not in votes:
            votes[vote.comparison_id] = vote
            self._cover(rater, vote, 1)

    async def withdraw(self, rater: Rater, vote: CountedVote) -> None:
        votes = self.days.setdefault((rater, day_of(vote.at)), {})
        if not votes[vote.comparison_id].withdrawn:
            votes[vote.comparison_id] = vote.model_copy(update={"withdrawn": True})
            self._cover(rater, vote, -1)

    async def votes(self, rater: Rater, day: date) -> list[CountedVote]:
        return newest_first(self.days.get((rater, day), {}).values())

    async def coverage(self, tenant: str, day: date) -> dict[str, int]:
        return dict(self.counts.get((tenant, day), {}))

    async def wins(self, tenant: str) -> dict[tuple[str, str], float]:
        return dict(self.won.get(tenant, {}))

    def _cover(self, rater: Rater, vote: CountedVote, by: int) -> None:
        won = self.won.setdefault(rater.tenant, {})
        for pair, share in won_by(vote).items():
            won[pair] = won.get(pair, 0.0) + by * share
        counts = self.counts.setdefault((rater.tenant, day_of(vote.at)), {})
        counts[vote.category] = counts.get(vote.category, 0) + by


@dataclass
class SteeredRouter:
    """Answers with the version's text, else with `text`, after `gate` opens; or with an error.

    It scores answers, too, by the first of `scores` that stands in one.
    """

    text: str = "The **answer** to {question}, by a model that takes its words seriously."
    texts: dict[str, str] = field(default_factory=dict)
    status: int = 200
    score_status: int = 200
    scores: dict[str, float] = field(default_factory=dict)
    scored: list[int] = field(default_factory=list)
    """How many answers each request asked to score."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        self.authorizations.append(request.headers.get("authorization", ""))
        version, number = body["model"], len(self.asked)
        await asyncio.to_thread(self.gate.wait, 60)
        if self.status != 200:
            error = {"message": "the engine fails", "type": "error", "param": None, "code": None}
            return web.json_response({"error": error}, status=self.status)
        question = body["messages"][0]["content"]
        text = self.texts.get(version, self.text).replace("{question}", question)
        text = text.replace("{seed}", "odd" if body["seed"] % 2 else "even")
        return web.json_response(
            {"model": version, "choices": [{"message": {"role": "assistant", "content": text}}]},
            headers={"x-ratchet-trace-id": f"trace-{number}", "x-ratchet-version": version},
        )

    async def score(self, request: web.Request) -> web.Response:
        items: list[dict[str, Any]] = (await request.json())["items"]
        self.scored.append(len(items))
        if self.score_status != 200:
            return web.json_response({"title": "no reward model"}, status=self.score_status)
        found = [
            next((score for part, score in self.scores.items() if part in item["completion"]), 0.0)
            for item in items
        ]
        return web.json_response({"reward_model": "r1", "scores": found})


class SteeredClock(SystemClock):
    """The machine's clock, moved forward by tests."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)


@dataclass
class VotingHarness:
    """The page and what a test wants to turn or look at."""

    url: str
    router: SteeredRouter
    routing: RoutingTable
    log: MemoryLog
    raters: MemoryRaters
    comparisons: MemoryComparisons
    clock: SteeredClock
    ballots: RaterBallots
    keys: KeyRing
    annotations: AnnotationService

    def invite(self, rater: Rater = RATER, *, hours: float = 1.0) -> str:
        """A link that signs a rater in."""
        expires_at = self.clock.now() + timedelta(hours=hours)
        token = Invites(SECRET).issue(rater, expires_at=expires_at)
        return f"{self.url}/vote/sign-in?invite={token}"

    def events(self) -> list[Any]:
        """All events on the feedback topic, partition by partition."""
        partitions = self.log.records.get(FEEDBACK, [])
        return [event_of(record) for records in partitions for record in records]


@asynccontextmanager
async def voting_service(
    plan: VotingPlan = PLAN,
    *,
    proxy_header: str = "",
    embed_origins: tuple[str, ...] = (),
    secret: str = SECRET,
    keys_required: bool = False,
    authorization: str = "",
    router_timeout_s: float = 20.0,
    candidates: int = 1,
    drawn_share: float = DRAWN_SHARE,
    redact: Redact = Redactor().text,  # noqa: B008
) -> AsyncIterator[tuple[Any, VotingHarness]]:
    """The application and its harness, without a server."""
    router, clock, log = SteeredRouter(), SteeredClock(), MemoryLog()
    store, raters = MemoryComparisons(), MemoryRaters()
    async with (
        answering(router.chat, router.score) as url,
        aiohttp.ClientSession() as session,
        feedback_parts(
            log,
            router_url=url,
            router_timeout_s=router_timeout_s,
            store=store,
            keys_required=keys_required,
            anonymous_votes=False,
            body_timeout_s=5.0,
            clock=clock,
            redact=redact,
        ) as parts,
    ):
        ballots = RaterBallots(
            comparisons=parts.comparisons,
            open_comparisons=store,
            raters=raters,
            publisher=parts.publisher,
            routing=parts.routing,
            metrics=parts.metrics,
            clock=clock,
            redact=redact,
            plan=plan,
            authorization=authorization,
            pairs=PairChoice.of(RewardScores(session, (url,), str), clock, candidates),
            drawn_share=drawn_share,
            rng=random.Random(7),
        )
        leases = MemoryLeases(clock, plan.annotation.lease)
        annotations = AnnotationService(
            event_log=log,
            leases=leases,
            comparisons=parts.comparisons,
            routing=parts.routing,
            publisher=parts.publisher,
            read_model=parts.model,
            registry=parts.collected,
            keys=parts.keys,
            clock=clock,
            redact=redact,
            plan=plan,
            authorization=authorization,
        )
        app = create_app(parts.api, parts.metrics, annotations.router())
        sign_in = SignIn(
            secret, 3600, secure=False, proxy_header=proxy_header, embed_origins=embed_origins
        )
        options = VotingOptions(plan, sign_in if secret else None, authorization)
        mount_voting(
            app,
            lambda sessions: [
                *VotingPage(ballots, sessions).routes(),
                *annotations.pages(sessions),
            ],
            options,
            parts.keys,
            clock,
        )
        set_routing(parts.routing, stable="assistant-v1.0", candidate="assistant-v1.1")
        yield (
            app,
            VotingHarness(
                "",
                router,
                parts.routing,
                log,
                raters,
                store,
                clock,
                ballots,
                parts.keys,
                annotations,
            ),
        )
        router.gate.set()
        await ballots.reserve.close()


@contextmanager
def voting_server(plan: VotingPlan = PLAN, **settings: Any) -> Iterator[VotingHarness]:
    """The page on a port of its own, served by a thread."""
    started: list[VotingHarness] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with voting_service(plan, **settings) as (app, harness):
            server = uvicorn.Server(
                uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2)
            )
            serving = asyncio.create_task(server.serve())
            await eventually(lambda: server.started, "the page's server listens")
            port = server.servers[0].sockets[0].getsockname()[1]
            harness.url = f"http://127.0.0.1:{port}"
            started.append(harness)
            ready.set()
            await asyncio.to_thread(stop.wait)
            harness.router.gate.set()
            server.should_exit = True
            await serving

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="voting-server")
    thread.start()
    try:
        assert ready.wait(60), "the page's server did not start"
        yield started[0]
    finally:
        stop.set()
        thread.join(30)
