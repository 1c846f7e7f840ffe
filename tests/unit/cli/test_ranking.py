"""Which votes a ranking counts."""

from __future__ import annotations

from services.cli.ranking import ranking_votes, standing_votes, vote_events
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.votes import INFORMATIVE, PAIR_LABEL, Choice
from shared.contracts.topics import FEEDBACK
from shared.testing.log import MemoryLog
from tests.support.aggregator import feedback, vote, withdrawn


def test_the_last_revision_counts_and_the_withdrawn_do_not() -> None:
    edited = vote("c1", Choice.right, revision=1)
    events = [
        vote("c1"),
        edited,
        vote("c2"),
        withdrawn("c2", "c2", FeedbackType.preference),
        vote("c3").model_copy(update={"anonymous": True}),
        withdrawn("other", "other", FeedbackType.preference),
    ]
    assert standing_votes(events) == [edited]


def test_votes_on_pairs_chosen_as_hard_to_tell_apart_rank_no_version() -> None:
    drawn, other = vote("c1"), vote("c2")
    context = other.context.model_copy(update={"labels": {PAIR_LABEL: INFORMATIVE}})
    events = [drawn, other.model_copy(update={"context": context})]
    assert len(standing_votes(events)) == 2
    assert ranking_votes(events) == [drawn]


def test_of_one_vote_sent_twice_one_counts() -> None:
    assert len(standing_votes([vote("c1"), vote("c1")])) == 1


async def test_votes_and_their_withdrawals_are_read_and_nothing_else() -> None:
    log = MemoryLog()
    undone = withdrawn("c1", "c1", FeedbackType.preference)
    others = (feedback("f1"), withdrawn("f1"))
    for number, event in enumerate((vote("c1"), *others, undone, vote("c2"))):
        await log.publish(FEEDBACK, key="one", event=event, event_id=str(number))
    await log.append(
        FEEDBACK, key="one", value=b"{", headers=[("ce_type", b"ratchet.vote.cast.v1")]
    )
    events = await vote_events(log)
    assert events == [vote("c1"), undone, vote("c2")]
    assert standing_votes(events) == [vote("c2")]
