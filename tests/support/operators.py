"""API keys with the scope `operate`, each of a tenant."""

from __future__ import annotations

from datetime import UTC, datetime

from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.keys import KeyRing
from shared.registry.api_keys import make_key

ISSUED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def operator_of(
    tenant: str, keys: KeyRing, *, approver: bool = False
) -> tuple[ApiKeyIssued, dict[str, str]]:
    """A new key of a tenant on the ring, and the headers of who has it."""
    fields = {"tenant": tenant, "scopes": (Permission.operate,), "approver": approver}
    new = make_key(fields, ISSUED_AT)
    keys.apply(new.issued.key_id, new.issued.to_json())
    return new.issued, {"authorization": f"Bearer {new.secret}"}
