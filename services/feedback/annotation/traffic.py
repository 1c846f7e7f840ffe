"""Recent traffic of a tenant: the newest requests on the log, as prompts that can be sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from services.feedback.annotation.sampling import TrafficPrompt
from services.feedback.errors import EventLogUnavailable
from services.feedback.voting.plan import MAX_QUESTION
from shared.contracts.events.base import prompt_text
from shared.contracts.events.interactions import InteractionRecorded, Outcome
from shared.contracts.topics import INTERACTIONS
from shared.kafka.envelope import UnreadableRecord, decode, models_by_type
from shared.kafka.log import EventLog, LogUnavailable, Record, read_to_end

NEWEST = 500
"""Records read of each partition."""
READ_TIMEOUT_S = 20.0
FAILED = frozenset((Outcome.server_error, Outcome.timeout, Outcome.crash))
_MODELS = models_by_type(InteractionRecorded)


class RecentTraffic:
    """Reads the newest requests when asked; one reading at a time."""

    def __init__(self, log: EventLog, category_of: Callable[[str, str], str]) -> None:
        """`category_of` takes a question and the category that the request names, if any."""
        self._log = log
        self._category_of = category_of
        self._reading = asyncio.Lock()

    async def prompts(self, tenant: str, disliked: Collection[str] = ()) -> list[TrafficPrompt]:
        """What users of a tenant asked lately, each conversation once.

        `disliked` are traces whose answers people disliked.

        Raises:
            EventLogUnavailable: the log gave no answer in time.

        """
        found: dict[str, TrafficPrompt] = {}

        def note(record: Record) -> bool:
            try:
                event = decode(record.headers, record.value, _MODELS)
            except UnreadableRecord:
                return False
            if isinstance(event, InteractionRecorded) and _can_be_shown(event, tenant):
                prompt = self._prompt(event, failing=event.trace_id in disliked)
                known = found.get(event.prompt)
                if known is None or prompt.failing:
                    found[event.prompt] = prompt
            return False

        async with self._reading:
            try:
                await read_to_end(
                    self._log, INTERACTIONS, newest=NEWEST, timeout_s=READ_TIMEOUT_S, keep=note
                )
            except LogUnavailable as error:
                raise EventLogUnavailable(
                    f"recent traffic cannot be read: {error}; try again", retry_after_s=5
                ) from error
        return list(found.values())

    def _prompt(self, event: InteractionRecorded, *, failing: bool) -> TrafficPrompt:
        question = prompt_text(event.messages[-1:])
        return TrafficPrompt(
            messages=event.messages,
            category=self._category_of(question, event.context.category),
            failing=failing or event.outcome in FAILED or event.cut,
            asker=event.user_id,
        )


def _can_be_shown(event: InteractionRecorded, tenant: str) -> bool:
    """Whether it is a tenant's conversation in text that a version can be asked again."""
    return (
        event.tenant == tenant
        and event.can_be_asked_again
        and event.outcome not in (Outcome.client_error, Outcome.cancelled)
        and not event.holdout
        and not event.tools
        and all(turn.is_text for turn in event.messages)
        and 0 < len(event.prompt.strip()) <= MAX_QUESTION
    )
