"""`ratchet feedback agreement`: how far raters agree on the same answers and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.kafka import read_events, with_log
from services.cli.output import AsJson, print_fields, print_json
from services.cli.ranking import standing_votes
from services.cli.settings import load_settings
from shared.reports.weekly import RAW_TARGET

if TYPE_CHECKING:
    from shared.agreement import RaterLabel
    from shared.contracts.events.base import Event
    from shared.kafka.log import EventLog


def agreement(
    *,
    tenant: Annotated[str, typer.Option(help="Only this tenant's; empty: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure how far raters agree on the same items: Krippendorff's alpha, raw agreement."""
    from shared.agreement import agreement as agreement_of

    events = with_log(load_settings(), rated_events)
    found = agreement_of(labels_of(events, tenant))
    if as_json:
        print_json(asdict(found))
        return
    interval = (
        "–" if found.low is None or found.high is None else f"{found.low:.2f} to {found.high:.2f}"
    )
    print_fields(
        "Agreement of raters",
        {
            "things that several raters labelled": found.items,
            "raters": found.raters,
            "labels": found.labels,
            "Krippendorff's alpha": "–" if found.alpha is None else f"{found.alpha:.2f}",
            "95 % interval": interval,
            f"raw agreement (target above {RAW_TARGET:.0%})": (
                "–" if found.raw is None else f"{found.raw:.1%}"
            ),
            **(
                {f"{found.kappa_of.capitalize()}'s kappa": f"{found.kappa:.2f}"}
                if found.kappa is not None
                else {}
            ),
        },
    )


def labels_of(events: Iterable[Event], tenant: str = "") -> Iterator[RaterLabel]:
    """What raters said last: good or bad of an answer, which of two answers is better.

    A comparison is the same one where it shows the same two answers, on whichever sides.
    """
    from shared.agreement import RaterLabel
    from shared.contracts.events.feedback import RATINGS, FeedbackSubmitted, FeedbackWithdrawn
    from shared.contracts.events.votes import Choice, VoteCast

    opinions: dict[tuple[str, str, str], tuple[tuple[float, int], RaterLabel | None]] = {}
    votes: list[Event] = []
    for event in events:
        if isinstance(event, VoteCast):
            votes.append(event)
            continue
        if not isinstance(event, FeedbackSubmitted | FeedbackWithdrawn):
            continue
        votes.append(event)
        key = (event.tenant, event.trace_id, event.feedback_id)
        order = (event.submitted_at.timestamp(), event.revision)
        label = None
        if isinstance(event, FeedbackSubmitted) and event.type in RATINGS and not event.anonymous:
            score = event.score if event.score is not None else 0.5
            said = "good" if score > 0.5 else "bad" if score < 0.5 else "between"
            label = RaterLabel(f"{event.tenant}/{event.trace_id}", event.user_id, said)
        if key not in opinions or order >= opinions[key][0]:
            opinions[key] = (order, label)
    for (owner, _, _), (_, label) in opinions.items():
        if label is not None and tenant in ("", owner):
            yield label
    for vote in standing_votes(votes):
        if tenant in ("", vote.tenant):
            traces = {Choice.left: vote.left.trace_id, Choice.right: vote.right.trace_id}
            shown = "+".join(sorted((vote.left.trace_id, vote.right.trace_id)))
            said = traces.get(vote.choice, vote.choice.value)
            yield RaterLabel(f"{vote.tenant}/{shown}", vote.user_id, said)


async def rated_events(log: EventLog) -> list[Event]:
    """Feedback, votes and withdrawals, as they are on the feedback topic.

    Raises:
        LogUnavailable: the topic's end was not reached in time.

    """
    from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
    from shared.contracts.events.votes import VoteCast
    from shared.contracts.topics import FEEDBACK

    return await read_events(log, (FEEDBACK,), FeedbackSubmitted, FeedbackWithdrawn, VoteCast)
