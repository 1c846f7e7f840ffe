"""Generation requests as records for the batch worker."""

from __future__ import annotations

from datetime import datetime

from shared.contracts.events.generations import GenerationRequested
from shared.contracts.topics import GENERATION_REQUESTS
from shared.kafka.log import NewRecord, event_record


def generation_record(request: GenerationRequested, *, source: str, time: datetime) -> NewRecord:
    """The record of a request, keyed and named by its id: one that is written twice is one."""
    return event_record(
        GENERATION_REQUESTS,
        request,
        key=request.request_id,
        source=source,
        event_id=request.request_id,
        time=time,
    )
