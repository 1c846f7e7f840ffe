"""Trace ids that clients make themselves: who may, their pattern, and that each names one request."""

from __future__ import annotations

import re
from collections import OrderedDict

from services.router.errors import InsufficientScope, InvalidRequest, TraceIdTaken
from services.router.id_claims import IdClaims
from shared.keys import ApiKey

HEADER = "x-ratchet-trace-id"
PATTERN = re.compile(rb"[A-Za-z0-9._:-]{8,128}")
ROUTER_MADE = re.compile(rb"[0-9a-fA-F]{32}")
"""The form of the router's own ids, which clients leave alone: so the two never collide."""
MAX_REMEMBERED = 100_000


class ClientIds:
    """The last ids of clients that this router took, at most `MAX_REMEMBERED` of all tenants.

    `claims` has those that any replica took lately.
    """

    def __init__(self, claims: IdClaims | None = None) -> None:
        self._claims = claims
        self._taken: OrderedDict[tuple[str, str], None] = OrderedDict()

    def read(self, raw: bytes | None, key: ApiKey) -> str:
        """The id in the header's value, or "" without one.

        Raises:
            InsufficientScope: the key may not make ids. InvalidRequest: the id breaks the pattern.

        """
        if raw is None:
            return ""
        if not key.own_trace_ids:
            raise InsufficientScope(
                f"{HEADER}: the key may not make trace ids; leave the header out, or have a key "
                "issued with --own-trace-ids",
                param=HEADER,
            )
        if not PATTERN.fullmatch(raw) or ROUTER_MADE.fullmatch(raw):
            raise InvalidRequest(
                f"{HEADER}: must be 8 to 128 letters, digits and . _ : -, and not 32 hex digits "
                "alone, which are the router's own ids; send such an id or leave it out",
                param=HEADER,
            )
        return raw.decode()

    async def claim(self, tenant: str, trace_id: str) -> None:
        """Take an id for one request.

        Raises:
            TraceIdTaken: a request of the tenant has it.

        """
        place = (tenant, trace_id)
        taken = place in self._taken
        if not taken:
            # Before the await: a second request with the id may come while Redis is asked.
            self._taken[place] = None
            if len(self._taken) > MAX_REMEMBERED:
                self._taken.popitem(last=False)
            taken = self._claims is not None and not await self._claims.take(tenant, trace_id)
        if taken:
            raise TraceIdTaken(
                f"{HEADER}: {trace_id!r} names an earlier request; give each try an id of its own",
                param=HEADER,
            )
