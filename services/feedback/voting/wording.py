"""What the page says when something is wrong: plain words, and what the rater can do."""

from __future__ import annotations

from typing import Any

from services.feedback.errors import (
    AlreadyVoted,
    Busy,
    ComparisonStoreUnavailable,
    EventLogUnavailable,
    Invalid,
    RouterFailed,
    RouterUnavailable,
)
from services.feedback.voting.reserve import NothingToVoteOn
from shared.errors import RatchetError
from shared.keys import Forbidden, Unauthenticated

_PAGE_KEY = (
    "The page's own API key is missing or not allowed to ask for comparisons.",
    "Tell the person who invited you: RATCHET_FEEDBACK_ROUTER_API_KEY_FILE names that key, which "
    "needs the scopes vote and infer and the right to name versions.",
)
_WORDS: tuple[tuple[type[RatchetError], str, str], ...] = (
    (
        RouterUnavailable,
        "The model did not answer in time.",
        "Wait a moment, then press Try again. If it lasts, tell the person who invited you.",
    ),
    (
        RouterFailed,
        "The model could not answer.",
        "Press Try again. If it happens again, tell the person who invited you.",
    ),
    (
        ComparisonStoreUnavailable,
        "Comparisons cannot be kept at the moment.",
        "Wait a moment, then press Try again. Votes that were counted are safe.",
    ),
    (
        EventLogUnavailable,
        "Votes cannot be stored at the moment.",
        "Wait a moment, then press the same button again. It counts once, however often you press.",
    ),
    (
        Busy,
        "Too much is going on at once.",
        "Wait a few seconds, then press Try again.",
    ),
    (
        AlreadyVoted,
        "This comparison already has your vote, perhaps from another tab.",
        "Go on with the next one.",
    ),
    (Unauthenticated, *_PAGE_KEY),
    (Forbidden, *_PAGE_KEY),
)


def in_plain_words(error: RatchetError) -> dict[str, Any]:
    """A problem with the two sentences that the page shows: what is wrong, and the remedy."""
    problem = error.problem()
    if isinstance(error, NothingToVoteOn | Invalid):
        what, remedy = _own_words(error)
    else:
        what, remedy = next(
            ((what, remedy) for kind, what, remedy in _WORDS if isinstance(error, kind)),
            _own_words(error),
        )
    return {**problem, "what": what, "remedy": remedy}


def _own_words(error: RatchetError) -> tuple[str, str]:
    """The first bad field with its remedy, or the error's sentence, split where its remedy begins."""
    if error.fields:
        first = error.fields[0]
        what, remedy = f"{first.field}: {first.rule}", first.remedy
    else:
        what, _, remedy = error.detail.partition("; ")
    return f"{what[:1].upper()}{what[1:]}.", f"{remedy[:1].upper()}{remedy[1:]}." if remedy else ""
