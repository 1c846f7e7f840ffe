"""Lease terms: which member of a consumer group gets the one partition, and how long it has had it.

A group's assignor, spoken among its members: each says whether it holds the lease and the newest
term it knows, and the group's leader gives the lease to who held it last.
"""

# pyright: basic, reportMissingTypeStubs=false
# aiokafka has no types.
from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)

VERSION = 0
_CLAIM = struct.Struct(">?Q")


class Claim(NamedTuple):
    """What a member knows: whether it held the lease in the newest term that it was told of."""

    held: bool = False
    term: int = 0

    def encode(self) -> bytes:
        """As the group's members exchange it."""
        return _CLAIM.pack(*self)

    @classmethod
    def decode(cls, data: bytes | None) -> Claim:
        """A member's claim; what cannot be read claims nothing."""
        try:
            return cls(*_CLAIM.unpack(data or b""))
        except struct.error:
            return cls()


def holder_of(claims: Mapping[str, Claim]) -> str:
    """The member that gets the lease: who held it last, so that none who joins takes it away.

    Of two that say so, one was expelled without knowing, and its term is the older one.
    """
    return max(claims, key=lambda member: (claims[member].held, claims[member].term, member))


class LeaseAssignor:
    """Gives partition 0 of a topic to one member. aiokafka takes an object with these methods."""

    name = "ratchet-lease"

    def __init__(
        self, topic: str, *, joining: Callable[[], None], told: Callable[[bool], None]
    ) -> None:
        """`joining` is called before each joining, `told` with what the group decided then."""
        self._topic = topic
        self._joining = joining
        self._told = told
        self._claim = Claim()

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member says of itself when it joins."""
        self._joining()
        return ConsumerProtocolMemberMetadata(VERSION, list(topics), self._claim.encode())

    def assign(
        self, _cluster: object, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Decide for all members, as the group's leader.

        A term is later than all that members know. It is a time, as a member that was away may
        know a later term than all who are left.
        """
        claims = {name: Claim.decode(member.user_data) for name, member in members.items()}
        holder = holder_of(claims)
        term = max(time.time_ns(), *(claim.term + 1 for claim in claims.values()))
        return {
            name: ConsumerProtocolMemberAssignment(
                VERSION,
                [(self._topic, [0])] if name == holder else [],
                Claim(name == holder, term).encode(),
            )
            for name in members
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Take note of what the leader decided."""
        self._claim = Claim.decode(assignment.user_data)
        self._told(bool(assignment.partitions()))
