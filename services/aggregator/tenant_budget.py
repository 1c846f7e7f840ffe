"""Tenant budget: how many bytes each tenant's traces hold in a partition, and who holds too many. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from services.aggregator.rows import tenant_of


@dataclass(slots=True)
class TenantBytes:
    """Sums of the rows of traces by tenant: their values as they are written, uncompressed."""

    sums: dict[str, int] = field(default_factory=dict[str, int])
    changed: set[str] = field(default_factory=set[str])
    """Tenants whose sums changed since the last batch."""
    _sizes: dict[bytes, int] = field(default_factory=dict[bytes, int])
    """What is in the sums of each row that was read or changed and is not confirmed yet."""

    def read(self, key: bytes, size: int) -> None:
        """The store holds a row of so many bytes, which the sums have."""
        self._sizes.setdefault(key, size)

    def resize(self, key: bytes, size: int) -> None:
        """A row has so many bytes now; 0 where it is gone."""
        tenant = tenant_of(key)
        if tenant is None:
            return
        more = size - self._sizes.get(key, 0)
        self._sizes[key] = size
        if more:
            self.sums[tenant] = self.sums.get(tenant, 0) + more
            self.changed.add(tenant)

    def forget_but(self, held: Container[bytes]) -> None:
        """All but these rows are confirmed, or were only read: the store knows their sizes."""
        self._sizes = {key: size for key, size in self._sizes.items() if key in held}

    def take(self) -> dict[str, int]:
        """The sums that changed since this was last asked; tenants without rows are forgotten."""
        changed = {tenant: self.sums[tenant] for tenant in self.changed}
        self.changed = set()
        for tenant, held in changed.items():
            if not held:
                del self.sums[tenant]
        return changed

    def over(self, limit: int) -> dict[str, int]:
        """By how many bytes tenants are over a limit; nobody is over 0, which is none."""
        if not limit:
            return {}
        return {tenant: held - limit for tenant, held in self.sums.items() if held > limit}


def added(sums: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """The sums after changes of some of them."""
    return {tenant: sums.get(tenant, 0) + change for tenant, change in more.items() if change}
