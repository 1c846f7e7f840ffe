"""Lease terms: who joins takes nothing away, and who was expelled unknowingly gets nothing back."""

from __future__ import annotations

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from shared.kafka.lease_terms import Claim, LeaseAssignor, holder_of

TOPIC = "jobs"


class Member:
    """One member's assignor, and what it was told."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.joined = 0
        self.assignor = LeaseAssignor(TOPIC, joining=self._joins, told=self.told.append)

    def _joins(self) -> None:
        self.joined += 1


def rebalance(leader: Member, **members: Member) -> None:
    """What the brokers do: all join, the leader decides, all are told."""
    metadata = {name: member.assignor.metadata([TOPIC]) for name, member in members.items()}
    decided = leader.assignor.assign(None, metadata)
    for name, member in members.items():
        member.assignor.on_assignment(decided[name])


def test_who_joins_takes_nothing_away_whoever_leads() -> None:
    first, second, third = Member(), Member(), Member()
    rebalance(first, m=first)
    rebalance(second, m=first, a=second)
    rebalance(third, m=first, a=second, z=third)
    assert first.told == [True, True, True]
    assert not any(second.told + third.told)
    assert first.joined == 3


def test_another_gets_it_when_the_holder_is_gone() -> None:
    first, second, third = Member(), Member(), Member()
    rebalance(first, a=first, b=second, c=third)
    holder = next(member for member in (first, second, third) if member.told[-1])
    rest = {f"m{n}": one for n, one in enumerate((first, second, third)) if one is not holder}
    rebalance(rest["m1" if "m1" in rest else "m2"], **rest)
    assert sorted(member.told[-1] for member in rest.values()) == [False, True]


@pytest.mark.parametrize("leads", ["gone", "later"])
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_who_was_expelled_unknowingly_gets_nothing_back(leads: str, names: tuple[str, str]) -> None:
    gone, later = Member(), Member()
    rebalance(gone, **{names[0]: gone})
    rebalance(later, **{names[1]: later})  # it never heard of the first one
    leader = gone if leads == "gone" else later
    rebalance(leader, **dict(zip(names, (gone, later), strict=True)))
    assert (gone.told[-1], later.told[-1]) == (False, True)


def test_a_claim_that_cannot_be_read_claims_nothing() -> None:
    assert Claim.decode(b"?") == Claim.decode(None) == Claim.decode(b"") == Claim()
    assert Claim.decode(Claim(held=True, term=7).encode()) == Claim(held=True, term=7)
    assert holder_of({"a": Claim(held=True, term=1), "b": Claim(held=False, term=9)}) == "a"
    assigned = Member().assignor.assign(
        None, {"a": ConsumerProtocolMemberMetadata(0, [TOPIC], b"?")}
    )
    assert [one.partition for one in assigned["a"].partitions()] == [0]
