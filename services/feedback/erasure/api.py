"""Erasure and export of a person over HTTP: a person of the key's own tenant only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import ExitStack
from datetime import timedelta
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, Literal, cast

import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from services.feedback.erasure.eraser import SWEEP_TIMEOUT_S, erasures_of
from services.feedback.erasure.people import body_of, is_about
from services.feedback.errors import Busy, EventLogUnavailable
from shared.clock import Clock
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Identifier
from shared.contracts.events.erasures import ErasureCompleted, ErasureRequested
from shared.contracts.topics import EXAMPLES, FEEDBACK, INTERACTIONS, PREFERENCES
from shared.http.openapi import problem_responses, text_answer
from shared.http.streaming import StreamedResponse
from shared.kafka.audit import Requester
from shared.kafka.log import EventLog, LogUnavailable, Record, read_to_end
from shared.keys import ApiKey, KeyRing
from shared.registry.erasures import Pseudonym, request_erasure, subjects_of

log = structlog.get_logger(__name__)

NDJSON = "application/x-ndjson"
SPOOL_BYTES = 16 * 1024 * 1024
"""Of an export in memory; a longer one is in a temporary file."""
CHUNK_BYTES = 256 * 1024
INTAKE_RETENTION = timedelta(hours=24)
"""How long brokers keep what products sent; see `feedback-intake.yaml`."""


class ErasureQuery(BaseModel):
    """Query parameters of an erasure."""

    reason: str = Field(min_length=1, max_length=2000, description="why; kept on record")
    on_behalf_of: str = Field(default="", max_length=200, description="for whom the caller acts")


class ErasureAccepted(BaseModel):
    """An erasure that is on record and will be done, whatever is killed."""

    erasure_id: str
    requested_at: AwareDatetime


class Erasure(BaseModel):
    """An erasure: who asked for it, and what it took away once it is done."""

    erasure_id: str
    state: Literal["requested", "completed"]
    requested_at: AwareDatetime
    actor: str
    on_behalf_of: str
    reason: str
    completed_at: AwareDatetime | None = Field(
        default=None, description="what the person wrote until then is gone, too; later texts stay"
    )
    traces: int | None = Field(
        default=None, description="traces that the person asked or gave feedback on"
    )
    examples: int | None = Field(default=None, description="joined examples that lost texts")
    products: int | None = Field(
        default=None, description="pairs and unpaired examples that were retracted"
    )
    clear_until: AwareDatetime = Field(
        description="when brokers have deleted what products sent before the request, in clear, to "
        "the tenant's intake topic"
    )


class Erasures(BaseModel):
    """All erasures of a person, oldest first."""

    erasures: list[Erasure]


class UserApi:
    """The endpoints, each one method."""

    def __init__(
        self,
        event_log: EventLog,
        keys: KeyRing,
        clock: Clock,
        *,
        pseudonym: Pseudonym,
    ) -> None:
        self._log = event_log
        self._keys = keys
        self._clock = clock
        self._pseudonym = pseudonym
        self._exporting = asyncio.Lock()

    async def erase(self, request: Request, user_id: str, query: ErasureQuery) -> ErasureAccepted:
        """See the route.

        Raises:
            EventLogUnavailable: nothing is on record, or it is not known whether it is.

        """
        key = self._operator(request)
        subjects = subjects_of(key.tenant, user_id, self._pseudonym)
        who = Requester(key.key_id, query.on_behalf_of, query.reason)
        try:
            event = await request_erasure(
                self._log, key.tenant, subjects, who, now=self._clock.now()
            )
        except LogUnavailable as error:
            raise _unavailable(error) from error
        log.info("erasure.requested", erasure_id=event.erasure_id, actor=key.key_id)
        return ErasureAccepted(erasure_id=event.erasure_id, requested_at=event.requested_at)

    async def erasures(self, request: Request, user_id: str) -> Erasures:
        """See the route.

        Raises:
            EventLogUnavailable: they cannot be read now.

        """
        tenant = self._operator(request).tenant
        try:
            subjects = subjects_of(tenant, user_id, self._pseudonym)
            events = await erasures_of(self._log, tenant, subjects)
        except LogUnavailable as error:
            raise _unavailable(error) from error
        completed = {one.erasure_id: one for one in events if isinstance(one, ErasureCompleted)}
        return Erasures(
            erasures=[
                _erasure(one, completed.get(one.erasure_id))
                for one in events
                if isinstance(one, ErasureRequested)
            ]
        )

    async def export(self, request: Request, user_id: str) -> Response:
        """See the route.

        Raises:
            Busy: another export reads the log, or the disk takes no more.
            EventLogUnavailable: the log cannot be read now.

        """
        tenant = self._operator(request).tenant
        subjects = subjects_of(tenant, user_id, self._pseudonym)
        if self._exporting.locked():
            raise Busy("another person is being exported; ask again then", retry_after_s=30)
        async with self._exporting:
            # Read whole before the answer begins, so that a failure is an error.
            found = await self._records_about(tenant, subjects)
        log.info("person.exported", bytes=found.tell())
        return StreamedResponse(_chunks(found), media_type=NDJSON)

    async def _records_about(self, tenant: str, subjects: Collection[str]) -> BinaryIO:
        """The person's records as lines of a file, which is in memory while it is small."""
        topics = (INTERACTIONS, FEEDBACK, EXAMPLES, PREFERENCES)
        with ExitStack() as unless_whole:
            # One id may stand for all users of a product, whose records no memory holds.
            spool = unless_whole.enter_context(SpooledTemporaryFile(max_size=SPOOL_BYTES))
            found = cast("BinaryIO", spool)

            def write(record: Record) -> bool:
                body = body_of(record)
                if body.get("tenant") == tenant and is_about(body, subjects):
                    found.write(
                        b'{"topic":"%s","event":%s}\n' % (record.topic.encode(), record.value)
                    )
                return False

            try:
                await read_to_end(self._log, *topics, timeout_s=SWEEP_TIMEOUT_S, keep=write)
            except LogUnavailable as error:
                raise _unavailable(error) from error
            except OSError as error:
                raise Busy(f"the export cannot be written: {error}; free the disk") from error
            unless_whole.pop_all()
            return found

    def _operator(self, request: Request) -> ApiKey:
        authorization = request.headers.get("authorization")
        return self._keys.authenticate(authorization, Permission.operate)


def user_router(api: UserApi) -> APIRouter:
    """The routes about people."""
    router = APIRouter(prefix="/v1/users")
    problems = problem_responses(401, 403, 422, 503)

    @router.get("/{user_id:path}/erasures", responses=problems)
    async def list_erasures(request: Request, user_id: Identifier) -> Erasures:
        """A person's erasures, and what each took away: the proof."""
        return await api.erasures(request, user_id)

    @router.get("/{user_id:path}/export", response_class=Response, responses={
        **text_answer(NDJSON, said="One stored event a line"), **problems})  # fmt: skip
    async def export_user(request: Request, user_id: Identifier) -> Response:
        """Every stored event that is about a person, as JSON Lines with its topic."""
        return await api.export(request, user_id)

    @router.delete("/{user_id:path}", status_code=202, responses=problems)
    async def erase_user(
        request: Request, user_id: Identifier, query: Annotated[ErasureQuery, Query()]
    ) -> ErasureAccepted:
        """Erase a person; done within minutes, see the person's erasures."""
        return await api.erase(request, user_id, query)

    return router


async def _chunks(file: BinaryIO) -> AsyncGenerator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _erasure(request: ErasureRequested, done: ErasureCompleted | None) -> Erasure:
    asked = {"erasure_id", "requested_at", "actor", "on_behalf_of", "reason"}
    found = {"completed_at", "traces", "examples", "products"}
    return Erasure(
        state="completed" if done else "requested",
        clear_until=request.requested_at + INTAKE_RETENTION,
        **request.model_dump(include=asked),
        **(done.model_dump(include=found) if done else {}),
    )


def _unavailable(error: LogUnavailable) -> EventLogUnavailable:
    return EventLogUnavailable(
        f"the event log did not answer: {error}; try again, erasing twice does no harm",
        retry_after_s=5,
    )
