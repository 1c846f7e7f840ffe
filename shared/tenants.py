"""Tenants: their names, and which models the keys of each may operate. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ALLOWED = "letters, digits, '.', '_' and '-', at most 128 of them, names separated by commas"

DEFAULT_TENANT = "default"
"""Whose a key is that names no tenant."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_tenants(names: Iterable[str]) -> tuple[str, ...]:
    """The names as given: each becomes part of a Kafka topic's name, so they share its alphabet.

    Raises:
        ValueError: no topic can carry one of the names.

    """
    checked = tuple(names)
    for name in checked:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no tenant's name; allowed: {ALLOWED}")
    return checked


@dataclass(frozen=True, slots=True)
class OperatorScope:
    """What a key with the scope `operate` may act on."""

    tenant: str
    everything: bool
    models: frozenset[str]
    """Of its tenant."""

    def has_model(self, model: str) -> bool:
        """Whether it may act on a model and see it."""
        return self.everything or model in self.models

    def has_tenant(self, tenant: str) -> bool:
        """Whether it may act on what is a tenant's and see it."""
        return self.everything or tenant == self.tenant


@dataclass(frozen=True, slots=True)
class ModelTenants:
    """The tenant of each model.

    Keys of the operators' tenant act on everything, those of another tenant on its models. A model
    that has no tenant is the operators'. Where no model has one, every key acts on everything.
    """

    tenants: Mapping[str, str] = field(default_factory=dict[str, str])
    operators: str = DEFAULT_TENANT

    def scope_of(self, tenant: str) -> OperatorScope:
        """What the keys of a tenant may act on."""
        return OperatorScope(
            tenant,
            not self.tenants or tenant == self.operators,
            frozenset(model for model, owner in self.tenants.items() if owner == tenant),
        )
