"""Follower of `annotations.v1`, and of erasures: keeps the board at the end of both topics."""

from __future__ import annotations

from services.feedback.annotation.board import AnnotationBoard
from shared.contracts.events.annotations import AnnotationGiven, AnnotationItemAdded
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested
from shared.contracts.topics import ANNOTATIONS, ERASURES
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import EventLog, Record
from shared.registry.follow import Follower

_MODELS = models_by_type(AnnotationItemAdded, AnnotationGiven, ErasureRequested, ErasureCompleted)


class AnnotationFollower(Follower):
    """Keeps `board` current."""

    def __init__(self, event_log: EventLog, board: AnnotationBoard) -> None:
        self.board = board
        super().__init__(event_log, (ANNOTATIONS, ERASURES), self._fold)

    def _fold(self, record: Record) -> None:
        event = decode(record.headers, record.value, _MODELS)
        if isinstance(event, AnnotationItemAdded | AnnotationGiven | ErasureRequested):
            self.board.apply(event)
