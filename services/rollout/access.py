"""Dependencies of the control API's routes: what a request names must be of its key's tenant.

Each route has one, which `tests/unit/rollout/test_access.py` checks. A list has `listed`, and shows
what the key's tenant has (`OperatorScope`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from fastapi import Request

from services.rollout.decision_log import DecisionLog
from services.rollout.errors import AuditUnavailable
from services.rollout.trained_datasets import trainings
from shared.contracts.topics import intake_topic
from shared.kafka.log import EventLog, LogUnavailable
from shared.keys import ApiKey, OutOfScope
from shared.registry.api_keys import known_key
from shared.registry.training_jobs import known_job
from shared.registry.versions import Registry
from shared.tenants import DEFAULT_TENANT, ModelTenants, OperatorScope

NEWEST_JOBS = 5_000
"""Records of each partition of trainings that are read for a job's model."""
KEY = "ratchet.key"
"""Where a request's scope has the key that was authenticated."""


def key_of(request: Request) -> ApiKey:
    """The key that a request was authenticated with."""
    return request.scope[KEY]


class Access:
    """Checks of what requests name. What does not exist is nobody's: the operators' to ask for."""

    def __init__(
        self,
        tenants: ModelTenants,
        event_log: EventLog,
        registry: Registry,
        decision_log: DecisionLog,
    ) -> None:
        self._tenants = tenants
        self._log = event_log
        self._registry = registry
        self._decision_log = decision_log

    def scope_of(self, request: Request) -> OperatorScope:
        """What the key of a request may act on."""
        return self._tenants.scope_of(key_of(request).tenant)

    def listed(self) -> None:
        """For a route that shows what the key's tenant has, or what is no tenant's."""

    def model_of_query(self, request: Request, model: str = "") -> None:
        """The query's model."""
        self._must(request, self.scope_of(request).has_model(model), "model", model)

    def model_if_named(self, request: Request, model: str = "") -> None:
        """The query's model, for a route that without one shows what the key's tenant has."""
        if model:
            self.model_of_query(request, model)

    async def model_of_body(self, request: Request) -> None:
        """The body's model; a body that names none is for the route to refuse or to answer."""
        model = await _named(request, "model")
        if model is not None:
            self._must(request, self.scope_of(request).has_model(model), "model", model)

    async def tenant_of_body(self, request: Request) -> None:
        """The body's tenant."""
        tenant = await _named(request, "tenant") or DEFAULT_TENANT
        self._must(request, self.scope_of(request).has_tenant(tenant), "tenant", tenant)

    async def letters_of_body(self, request: Request) -> None:
        """Dead letters of the topic that the body names: a tenant has those of its intake."""
        topic = await _named(request, "topic") or ""
        scope = self.scope_of(request)
        self._must(request, has_letters(scope, topic), "topic", topic)

    def rollout(self, request: Request, rollout_id: str) -> None:
        """The path's rollout, or the model whose decisions belong to none."""
        history = self._decision_log.get(rollout_id)
        model = history.state.model if history else rollout_id
        self._must(request, self.scope_of(request).has_model(model), "rollout_id", rollout_id)

    def version(self, request: Request, version: str) -> None:
        """The path's version."""
        self._must_have_version(request, "version", version)

    def both_versions(self, request: Request, first: str, second: str) -> None:
        """The query's two versions."""
        self._must_have_version(request, "first", first)
        self._must_have_version(request, "second", second)

    def dataset(self, request: Request, dataset_id: str) -> None:
        """The path's dataset: something of the key's models was trained on it."""
        scope = self.scope_of(request)
        found = trainings(self._registry, dataset_id)
        allowed = scope.everything or any(scope.has_model(one.record.model) for one in found)
        self._must(request, allowed, "dataset_id", dataset_id)

    async def job(self, request: Request, job_id: str) -> None:
        """The path's training job."""
        scope = self.scope_of(request)
        if not scope.everything:
            with _read():
                model = (await known_job(self._log, job_id, newest=NEWEST_JOBS))["model"]
            self._must(request, scope.has_model(model), "job_id", job_id)

    async def api_key(self, request: Request, key_id: str) -> None:
        """The path's API key."""
        scope = self.scope_of(request)
        if not scope.everything:
            with _read():
                tenant = (await known_key(self._log, key_id)).tenant
            self._must(request, scope.has_tenant(tenant), "key_id", key_id)

    def _must_have_version(self, request: Request, field: str, name: str) -> None:
        version = self._registry.get(name)
        model = version.record.model if version else ""
        self._must(request, self.scope_of(request).has_model(model), field, name)

    def _must(self, request: Request, allowed: bool, field: str, value: str) -> None:
        if not allowed:
            raise OutOfScope(field, value, key_of(request).tenant)


def has_letters(scope: OperatorScope, topic: str) -> bool:
    """Whether a key may see and replay a topic's dead letters: topics but intakes mix tenants."""
    return scope.everything or topic == intake_topic(scope.tenant)


@contextmanager
def _read() -> Iterator[None]:
    try:
        yield
    except LogUnavailable as error:
        raise AuditUnavailable(f"the log could not be read: {error}; try again") from None


async def _named(request: Request, field: str) -> str | None:
    """A text of the JSON body, as the route will read it; None where there is none."""
    try:
        body: Any = await request.json()
    except (ValueError, RecursionError):
        return None
    value = cast("dict[str, Any]", body).get(field) if isinstance(body, dict) else None
    return value if isinstance(value, str) else None
