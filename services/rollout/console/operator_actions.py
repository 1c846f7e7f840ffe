"""What operators do beside rollouts: each action names who and why, and is on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.rollout.console.operator_views import NEWEST
from services.rollout.errors import ActionUnavailable, KeyRefused, Unknown
from shared.clock import Clock
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.base import (
    Identifier,
    ModelName,
    OptionalIdentifier,
    OptionalName,
)
from shared.contracts.events.dead_letters import DeadLetter
from shared.contracts.events.training import TrainingRequested, method_fields
from shared.contracts.recipes import BadRecipe, merge_recipe
from shared.errors import FieldError
from shared.http.problems import InvalidField
from shared.kafka.audit import Requester
from shared.kafka.deadletters import dead_letters_to_end, place_of, replay_on_record
from shared.kafka.log import EventLog, LogUnavailable, Position
from shared.keys import ApiKey, OutOfScope
from shared.registry.api_keys import (
    NewKey,
    issue_key,
    known_key,
    make_key,
    revoke_key,
    rotate_key,
)
from shared.registry.erasures import Pseudonym, request_erasure, subjects_of
from shared.registry.training_jobs import cancel_job, new_job_id, refuse_impossible, request_job
from shared.registry.versions import Registry
from shared.tenants import DEFAULT_TENANT, OperatorScope
from shared.validation import field_refusal, fields_found, in_one_line

AT_THE_COMMAND_LINE = "is issued at the command line only"
REPLAYED_AT_A_TIME = 100
"""Dead letters in memory at a time; each such batch is an entry of the audit topic."""
MAX_DAYS = 3650.0
MAX_OVERLAP_HOURS = 24.0 * 90
MAX_RECIPE = 20_000
"""Characters of a recipe's YAML."""


class ActionRequest(BaseModel):
    """Why an action is done, and for whom."""

    model_config = ConfigDict(extra="forbid")
    on_behalf_of: OptionalIdentifier = ""
    reason: Annotated[str, Field(min_length=1, max_length=1000)]

    def requester(self, key: ApiKey) -> Requester:
        """Who asks: the key is the actor."""
        return Requester(key.key_id, self.on_behalf_of, self.reason)


class IssueKeyRequest(ActionRequest):
    """Issue an API key for a product or its people."""

    scopes: Annotated[tuple[Permission, ...], Field(min_length=1, max_length=len(Permission))]
    tenant: Identifier = DEFAULT_TENANT
    name: Annotated[str, Field(max_length=200)] = ""
    days: Annotated[float, Field(ge=0, le=MAX_DAYS, description="until it expires; 0: never")] = 0


class RotateKeyRequest(ActionRequest):
    """Issue a key like an old one, and let the old one expire."""

    overlap_hours: Annotated[float, Field(ge=0, le=MAX_OVERLAP_HOURS)] = 24
    days: Annotated[float, Field(ge=0, le=MAX_DAYS, description="until it expires; 0: never")] = 0


class TrainRequest(ActionRequest):
    """Ask for the next version of a model, as `ratchet train` does."""

    model: ModelName
    version: OptionalName = ""
    method: Annotated[str, Field(max_length=40, description="empty: the recipe's, else dpo")] = ""
    recipe: Annotated[str, Field(max_length=MAX_RECIPE, description="YAML of a recipe file")] = ""
    override_gate: bool = False


class EraseRequest(ActionRequest):
    """Erase a person of the key's tenant."""

    user_id: Identifier


class ReplayRequest(ActionRequest):
    """Hand one dead letter, or all that a topic has among the newest, back to where it came from."""

    topic: Identifier
    partition: Annotated[int, Field(ge=-1, description="-1: a router could not ship it")] | None = (
        None
    )
    offset: Annotated[int, Field(ge=0)] | None = None


class OperatorActions:
    """Writes what operators ask for to the log. Any replica does."""

    def __init__(
        self, event_log: EventLog, registry: Registry, clock: Clock, *, pseudonym: Pseudonym
    ) -> None:
        self._log = event_log
        self._registry = registry
        self._clock = clock
        self._replaying = asyncio.Semaphore(1)
        self._pseudonym = pseudonym

    async def issue(self, body: IssueKeyRequest, key: ApiKey) -> dict[str, Any]:
        """See IssueKeyRequest. The answer is the only place that has the secret.

        Raises:
            KeyRefused: it would have the scope `operate`.
            ActionUnavailable: the brokers did not acknowledge it.

        """
        if Permission.operate in body.scopes:
            raise field_refusal(
                KeyRefused,
                "scopes",
                f"a key with the scope operate {AT_THE_COMMAND_LINE}",
                "ask whoever may write the topic of keys",
            )
        fields = body.model_dump(include={"scopes", "tenant", "name"})
        new = make_key(fields | {"expires_at": self._in_days(body.days)}, self._clock.now())
        with _acknowledged():
            await issue_key(self._log, new, body.requester(key))
        return _once(new)

    async def rotate(self, key_id: str, body: RotateKeyRequest, key: ApiKey) -> dict[str, Any]:
        """See RotateKeyRequest. The answer is the only place that has the secret.

        Raises:
            UnknownKey: there is none.
            KeyRefused: it is another operator's.
            ActionUnavailable: the brokers did not acknowledge it.

        """
        with _acknowledged():
            old = await known_key(self._log, key_id)
            _refuse_others_operators(old, key)
            now = self._clock.now()
            new = await rotate_key(
                self._log,
                old,
                body.requester(key),
                now=now,
                old_expires_at=now + timedelta(hours=body.overlap_hours),
                expires_at=self._in_days(body.days),
            )
        return _once(new)

    async def revoke(self, key_id: str, body: ActionRequest, key: ApiKey) -> dict[str, Any]:
        """Revoke a key.

        Raises:
            UnknownKey: there is none.
            ActionUnavailable: the brokers did not acknowledge it.

        """
        with _acknowledged():
            await revoke_key(self._log, key_id, body.requester(key), now=self._clock.now())
        return {"revoked": key_id}

    async def train(self, body: TrainRequest, key: ApiKey, scope: OperatorScope) -> dict[str, Any]:
        """See TrainRequest. Files of datasets may hold any tenant's rows: the operators' to name.

        Raises:
            OutOfScope: the recipe names a dataset, and the key is a tenant's.
            InvalidField: the recipe names what no job can be trained with.
            JobRefused: the job could not be done, as `ratchet train` would say.
            ActionUnavailable: the brokers did not acknowledge it.

        """
        request = _training_request(body, body.requester(key), self._clock.now())
        if request.dataset_uri and not scope.everything:
            raise OutOfScope("recipe.dataset", request.dataset_uri, scope.tenant)
        try:
            await refuse_impossible(
                self._log, request, self._registry, sees=scope.has_model, newest=NEWEST
            )
        except LogUnavailable as error:
            raise ActionUnavailable(
                f"nothing was asked for, as the jobs could not be read: {error}; try again"
            ) from None
        with _acknowledged():
            await request_job(self._log, request)
        return {"job_id": request.job_id}

    async def erase(self, body: EraseRequest, key: ApiKey) -> dict[str, Any]:
        """See EraseRequest.

        Raises:
            ActionUnavailable: the brokers did not acknowledge it.

        """
        subjects = subjects_of(key.tenant, body.user_id, self._pseudonym)
        with _acknowledged():
            asked = await request_erasure(
                self._log, key.tenant, subjects, body.requester(key), now=self._clock.now()
            )
        return {"erasure_id": asked.erasure_id}

    async def cancel(self, job_id: str, body: ActionRequest, key: ApiKey) -> dict[str, Any]:
        """Cancel a training job.

        Raises:
            UnknownJob: there is none.
            JobEnded: it has ended.
            ActionUnavailable: the brokers did not acknowledge it.

        """
        who, now = body.requester(key), self._clock.now()
        with _acknowledged():
            await cancel_job(self._log, job_id, who, now=now, newest=NEWEST)
        return {"cancelled": job_id}

    async def replay(self, body: ReplayRequest, key: ApiKey) -> dict[str, Any]:
        """See ReplayRequest.

        Raises:
            Unknown: there is no such letter among the newest.
            ActionUnavailable: the brokers did not acknowledge it.

        """
        place = None
        if body.partition is not None and body.offset is not None:
            place = Position(body.topic, body.partition, body.offset)
        found, count, who = False, 0, body.requester(key)
        with _acknowledged():
            async with self._replaying:
                async for letters in self._letters(body.topic, place):
                    found = True
                    count += await replay_on_record(self._log, letters, who)
        if not found:
            raise Unknown("there is no such dead letter; GET /v1/dead-letters lists them")
        return {"replayed": count}

    async def _letters(
        self, topic: str, place: Position | None
    ) -> AsyncGenerator[list[DeadLetter]]:
        """A topic's letters among the newest, or the one at a place; a batch at a time."""
        batch: list[DeadLetter] = []
        letters = dead_letters_to_end(self._log, source_topic=topic, newest=NEWEST)
        async with aclosing(letters):
            async for letter in letters:
                if place is None or place_of(letter) == place:
                    batch.append(letter)
                if len(batch) == REPLAYED_AT_A_TIME:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _in_days(self, days: float) -> datetime | None:
        return self._clock.now() + timedelta(days=days) if days else None


def _training_request(body: TrainRequest, who: Requester, at: datetime) -> TrainingRequested:
    options = {"method": body.method} if body.method else {}
    try:
        recipe = merge_recipe(body.recipe.strip() or None, options, {})
    except BadRecipe as error:
        rule = FieldError("recipe", str(error), "see shared/contracts/recipe.schema.json")
        raise InvalidField(str(error), [rule]) from None
    given = {
        **body.model_dump(include={"model", "version", "override_gate"}),
        **recipe.model_dump(include={"parent", "base", "seed", "hyperparameters"}),
        **method_fields(recipe.method),
        "dataset_uri": recipe.dataset,
        "job_id": new_job_id(),
        "requested_at": at,
        **who._asdict(),
    }
    try:
        return TrainingRequested.model_validate(given)
    except ValidationError as error:
        fields = fields_found(error.errors(), whole="recipe")
        raise InvalidField(in_one_line(fields), fields) from None


@contextmanager
def _acknowledged() -> Iterator[None]:
    try:
        yield
    except LogUnavailable as error:
        raise ActionUnavailable(
            f"it is not known whether it was written: {error}; look before another try"
        ) from None


def _refuse_others_operators(old: ApiKeyIssued, key: ApiKey) -> None:
    """A secret of another operator's key would let one person pass for two at a gate."""
    if old.key_id == key.key_id:
        return
    if Permission.operate in old.scopes or old.approver:
        raise KeyRefused(f"another operator's key {AT_THE_COMMAND_LINE}; you may rotate your own")


def _once(new: NewKey) -> dict[str, Any]:
    shown = {"key_id", "tenant", "scopes", "expires_at"}
    return {**new.issued.model_dump(mode="json", include=shown), "key": new.secret}
