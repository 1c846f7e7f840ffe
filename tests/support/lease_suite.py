"""One suite for every AnnotationLeases."""

from __future__ import annotations

import asyncio

from services.feedback.annotation.leases import AnnotationLeases
from services.feedback.voting.invites import Rater

LEASE_S = 0.5
"""Leases of the suite: long enough for a test's own calls."""


class LeaseSuite:
    """A subclass names a fixture `leases` of LEASE_S seconds; `unique` keeps tests apart."""

    async def test_of_many_at_once_as_many_get_in_as_there_are_slots(
        self, leases: AnnotationLeases, unique: str
    ) -> None:
        raters = [Rater(unique, f"r{number}") for number in range(20)]
        taken = await asyncio.gather(
            *(leases.take(rater, "i1", slots=3, labelled=()) for rater in raters)
        )
        assert sum(taken) == 3

    async def test_who_holds_a_slot_keeps_it_and_is_known(
        self, leases: AnnotationLeases, unique: str
    ) -> None:
        rosa = Rater(unique, "rosa")
        assert await leases.held(rosa) is None
        for _ in range(2):
            assert await leases.take(rosa, "i1", slots=1, labelled=())
        assert await leases.held(rosa) == "i1"
        assert not await leases.take(Rater(unique, "otto"), "i1", slots=1, labelled=())

    async def test_a_lease_ends_and_frees_its_slot(
        self, leases: AnnotationLeases, unique: str
    ) -> None:
        assert await leases.take(Rater(unique, "rosa"), "i1", slots=1, labelled=())
        otto = Rater(unique, "otto")
        async with asyncio.timeout(60):
            while not await leases.take(otto, "i1", slots=1, labelled=()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await leases.held(otto) == "i1"

    async def test_a_filled_slot_stays_taken_and_its_rater_gets_no_other(
        self, leases: AnnotationLeases, unique: str
    ) -> None:
        rosa, otto = Rater(unique, "rosa"), Rater(unique, "otto")
        await leases.take(rosa, "i1", slots=2, labelled=())
        await leases.fill(rosa, "i1")
        assert await leases.held(rosa) is None
        assert not await leases.take(rosa, "i1", slots=2, labelled=("rosa",))
        assert await leases.take(otto, "i1", slots=2, labelled=("rosa",))
        assert not await leases.take(Rater(unique, "dora"), "i1", slots=2, labelled=())

    async def test_labels_known_from_the_log_alone_take_slots(
        self, leases: AnnotationLeases, unique: str
    ) -> None:
        assert not await leases.take(
            Rater(unique, "dora"), "i1", slots=2, labelled=("rosa", "otto")
        )

    async def test_a_skipped_slot_is_free(self, leases: AnnotationLeases, unique: str) -> None:
        rosa = Rater(unique, "rosa")
        await leases.take(rosa, "i1", slots=1, labelled=())
        await leases.skip(rosa, "i1")
        assert await leases.skipped(rosa) == {"i1"}
        assert await leases.held(rosa) is None
        assert await leases.take(Rater(unique, "otto"), "i1", slots=1, labelled=())
