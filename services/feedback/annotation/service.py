"""Wiring of the annotation queue: board, follower, label consistency, API and page."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.feedback.annotation.additions import ItemBuilder
from services.feedback.annotation.api import AnnotationApi, annotation_router
from services.feedback.annotation.board import AnnotationBoard
from services.feedback.annotation.consistency import LabelConsistency
from services.feedback.annotation.follower import AnnotationFollower
from services.feedback.annotation.leases import AnnotationLeases
from services.feedback.annotation.page import AnnotationPage
from services.feedback.annotation.queue import AnnotationQueue
from services.feedback.annotation.traffic import RecentTraffic
from services.feedback.comparisons import Comparisons
from services.feedback.errors import ReadModelBusy, ReadModelUnavailable
from services.feedback.publisher import FeedbackPublisher
from services.feedback.read_model.listing import ExampleFilter, ExampleKind
from services.feedback.read_model.queries import ReadModelQueries
from services.feedback.voting.plan import VotingPlan
from services.feedback.voting.sessions import RaterSessions
from shared.clock import Clock
from shared.kafka.log import EventLog
from shared.keys import KeyRing
from shared.redaction.detection import Redact
from shared.registry.routing import RoutingTable

log = structlog.get_logger(__name__)

KEPT = timedelta(days=30)
"""How long items stay: the retention of `annotations.v1`."""
FORGET_S = 3600.0
MAX_DISLIKED = 500
MAX_DISLIKED_BYTES = 8_000_000


class AnnotationService:
    """The queue with all that serves it."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        leases: AnnotationLeases,
        comparisons: Comparisons,
        routing: RoutingTable,
        publisher: FeedbackPublisher,
        read_model: ReadModelQueries,
        registry: CollectorRegistry,
        keys: KeyRing,
        clock: Clock,
        redact: Redact,
        plan: VotingPlan,
        authorization: str,
    ) -> None:
        board = AnnotationBoard(plan.annotation)
        builder = ItemBuilder(comparisons, routing, plan, clock, redact)
        self.follower = AnnotationFollower(event_log, board)
        self.queue = AnnotationQueue(
            board=board,
            leases=leases,
            builder=builder,
            publisher=publisher,
            clock=clock,
            redact=redact,
        )
        self.consistency = LabelConsistency(board, registry, clock)
        self._traffic = RecentTraffic(event_log, plan.category_of)
        self._read_model = read_model
        self._keys = keys
        self._authorization = authorization
        self._clock = clock
        self._guidelines = plan.guidelines

    def router(self) -> APIRouter:
        """The operators' routes."""
        api = AnnotationApi(
            self.queue,
            self.consistency,
            self._keys,
            self._traffic,
            self._disliked,
            authorization=self._authorization,
        )
        return annotation_router(api)

    def pages(self, sessions: RaterSessions) -> list[Route]:
        """The raters' routes."""
        page = AnnotationPage(self.queue, self.consistency, sessions, guidelines=self._guidelines)
        return page.routes()

    async def _disliked(self, tenant: str) -> frozenset[str]:
        """Traces with the newest negative feedback; none where the read model cannot be read."""
        wanted = ExampleFilter(kind=ExampleKind.negative)
        try:
            page = await self._read_model.page(
                tenant, wanted, None, limit=MAX_DISLIKED, max_bytes=MAX_DISLIKED_BYTES
            )
        except (ReadModelBusy, ReadModelUnavailable) as error:
            log.info("annotation.disliked_unknown", error=str(error))
            return frozenset()
        return frozenset(example.place.name for example in page.examples)

    async def run(self) -> None:
        """Follow the topic and keep label consistency current, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.follower.run())
            group.create_task(self.consistency.follow())
            group.create_task(self._forget_old())

    async def _forget_old(self) -> None:
        """Drop what the topic no longer has: after a restart no replica would know it."""
        while True:
            self.queue.board.forget_until(self._clock.now() - KEPT)
            await self._clock.sleep(FORGET_S)
