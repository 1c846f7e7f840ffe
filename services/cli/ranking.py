"""`ratchet feedback ranking`: versions ranked by their votes on the feedback topic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit
from services.cli.kafka import read_events, with_log
from services.cli.options import DEFAULT_MODEL
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.contracts.events.base import Event
    from shared.contracts.events.votes import VoteCast
    from shared.kafka.log import EventLog
    from shared.ranking.audit import Defect
    from shared.ranking.board import RankedVote
    from shared.ranking.standings import Effect, ShareWithin, VersionRanking

FAST = "vote_faster_than_reading"
"""Label of the voting page's votes that came faster than both answers can be read."""


def ranking(
    *,
    model: Annotated[str, typer.Option(help="Rank this model's versions.")] = DEFAULT_MODEL,
    tenant: Annotated[str, typer.Option(help="Only this tenant's votes; empty: all.")] = "",
    bootstraps: Annotated[
        int, typer.Option(min=10, max=10_000, help="Resamples of the votes, for the intervals.")
    ] = 1000,
    leave_out_fast: Annotated[
        bool, typer.Option("--leave-out-fast", help="Leave out votes faster than reading.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rank versions by votes: Bradley-Terry on Elo's scale, with 95 % intervals and an audit.

    Votes on pairs that a reward model chose as hard to tell apart are left out.
    """
    from shared.ranking.audit import audit
    from shared.ranking.standings import rank

    events = with_log(load_settings(), vote_events)
    votes = [
        vote
        for vote in ranking_votes(events)
        if vote.model == model and tenant in ("", vote.tenant)
    ]
    ranked = [
        ranked_vote(vote)
        for vote in votes
        if not (leave_out_fast and vote.context.labels.get(FAST))
    ]
    found = rank(ranked, bootstraps=bootstraps)
    if not found.votes:
        raise CliError(
            f"no votes between versions of {model}; open comparisons, or name another --model",
            Exit.failed,
        )
    findings = audit(ranked)
    if as_json:
        print_json({**asdict(found), "findings": list(map(asdict, findings))})
    else:
        _show(model, found, findings)


def standing_votes(events: Iterable[Event]) -> list[VoteCast]:
    """The votes that count: named, the highest revision of each, without those withdrawn."""
    from shared.contracts.events.feedback import FeedbackWithdrawn
    from shared.contracts.events.votes import VoteCast

    votes: dict[tuple[str, str], VoteCast] = {}
    withdrawn: dict[tuple[str, str], int] = {}
    for event in events:
        if isinstance(event, VoteCast):
            key = event.tenant, event.comparison_id
            if key not in votes or event.revision > votes[key].revision:
                votes[key] = event
        elif isinstance(event, FeedbackWithdrawn):
            key = event.tenant, event.feedback_id
            withdrawn[key] = max(event.revision, withdrawn.get(key, 0))
    return [
        vote
        for key, vote in votes.items()
        if not vote.anonymous and withdrawn.get(key, -1) < vote.revision
    ]


def ranking_votes(events: Iterable[Event]) -> list[VoteCast]:
    """The votes that count between versions: on any two of their answers.

    Who wins a pair that was chosen as hard to tell apart says little of how often a version wins.
    """
    from shared.contracts.events.votes import is_drawn

    return [vote for vote in standing_votes(events) if is_drawn(vote.context)]


def ranked_vote(vote: VoteCast) -> RankedVote:
    """What the ranking takes of a vote."""
    from shared.ranking.board import RankedVote

    return RankedVote(
        left=vote.left.version,
        right=vote.right.version,
        outcome=vote.choice.value,
        left_length=len(vote.left.completion),
        right_length=len(vote.right.completion),
        rater=f"{vote.tenant}/{vote.user_id}" if vote.user_id else "",
    )


async def vote_events(log: EventLog) -> list[Event]:
    """Votes and their withdrawals, as they are on the feedback topic.

    Raises:
        LogUnavailable: the topic's end was not reached in time.

    """
    from shared.contracts.events.feedback import FeedbackType, FeedbackWithdrawn
    from shared.contracts.events.votes import VoteCast
    from shared.contracts.topics import FEEDBACK

    return [
        event
        for event in await read_events(log, (FEEDBACK,), VoteCast, FeedbackWithdrawn)
        if isinstance(event, VoteCast) or event.type is FeedbackType.preference
    ]


def _show(model: str, found: VersionRanking, findings: Sequence[Defect]) -> None:
    print_table(
        f"Versions of {model} by {found.votes} votes of {found.raters} raters",
        ("rank", "version", "rating", "95 % interval", "without side and length", "votes"),
        [
            (
                one.rank,
                one.version,
                f"{one.rating:.0f}",
                f"{one.low:.0f} to {one.high:.0f}",
                f"{one.controlled:.0f}",
                one.votes,
            )
            for one in found.standings
        ],
    )
    lines = [
        _share("ties", found.ties),
        _share("both bad", found.both_bad),
        _share("the left answer won", found.left_wins),
        _share("the longer answer won", found.longer_wins),
        _effect("the left side is worth", found.position),
        _effect("twice the length is worth", found.length),
        f"intervals resample {found.resampled}",
        *(f"{one.check}: {one.message}" for one in findings),
    ]
    typer.echo("\n".join(lines))


def _share(what: str, share: ShareWithin) -> str:
    return f"{what}: {share.share:.1%} ({share.low:.1%} to {share.high:.1%} of {share.of})"


def _effect(what: str, effect: Effect | None) -> str:
    if effect is None:
        return f"{what}: no vote tells"
    return f"{what}: {effect.points:+.0f} points ({effect.low:+.0f} to {effect.high:+.0f})"
