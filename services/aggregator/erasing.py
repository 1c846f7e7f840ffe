"""Erasure of a person from a trace's row: texts and identity go, what was counted stays. Pure."""

from __future__ import annotations

from dataclasses import replace

from services.aggregator.contributions import OutcomeCounted
from services.aggregator.fold import Fold, Output
from services.aggregator.pairs import retraction
from services.aggregator.rows import FeedbackEntry, TraceRow
from services.aggregator.settlement import example, rated_answer
from shared.contracts.events.base import Context
from shared.contracts.events.erasures import TraceErased
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.preferences import ERASED
from shared.contracts.prompt_key import prompt_key
from shared.contracts.subject import subject_of
from shared.contracts.topics import RATED

NO_TEXTS = {"messages": (), "tools": (), "completion": "", "answer": None}
"""Fields of an interaction that hold texts, as they are without them."""


def fold_erased(row: TraceRow | None, event: TraceErased) -> Fold[TraceRow]:
    """Take a person's data out of a row; figures and counters stay as they are.

    The row remembers whom it was erased for, so that an interaction which a router delivers later
    is stored without the person's data.
    """
    row = row.copy() if row is not None else TraceRow()
    row.erased = tuple(dict.fromkeys((*row.erased, *event.subjects)))
    row.touched_s = max(row.touched_s, event.erased_at.timestamp())
    fold = Fold(row, contributions=[OutcomeCounted(ERASED)])
    asked = InteractionRecorded.model_validate_json(row.interaction) if row.interaction else None
    whole = event.whole or (asked is not None and asked_by_erased(asked, row))
    kept = without_person(asked) if asked is not None and whole else asked
    if kept is not None and kept is not asked:
        row.interaction = kept.to_json()
    for name, entry in row.entries.items():
        if whole or _is_of(entry, event):
            _erase_entry(fold, name, entry, event, asked, kept)
    if kept is not None and any(entry.counted == "joined" for entry in row.entries.values()):
        fold.outputs.append(example(row, kept, event.erased_at, f"{ERASED}:{event.erasure_id}"))
    return fold


def asked_by_erased(interaction: InteractionRecorded, row: TraceRow) -> bool:
    """Whether the person who asked was erased from the row."""
    return subject_of(interaction.tenant, interaction.user_id) in row.erased


def without_person(interaction: InteractionRecorded) -> InteractionRecorded:
    """The interaction as far as figures need it: no texts, no user, no session, no labels.

    Errors go too: engines quote the request that they refuse.
    """
    context = interaction.context
    known = Context(locale=context.locale, segment=context.segment, category=context.category)
    attempts = tuple(one.model_copy(update={"error": ""}) for one in interaction.attempts)
    nobody = {"response_format": "", "user_id": "", "context": known, "attempts": attempts}
    return interaction.model_copy(update={**NO_TEXTS, **nobody})


def emptied(entry: FeedbackEntry) -> FeedbackEntry:
    """The feedback as it was counted, without what was said and by whom.

    The edition is one more than before, so that what takes its rating back counts as newer.
    """
    return replace(
        entry, body=None, edition=entry.number + 1, products=[], rated="", first=None, rival=None
    )


def _is_of(entry: FeedbackEntry, event: TraceErased) -> bool:
    bodies = (entry.body, entry.rival.body if entry.rival is not None else None)
    users = {body.get("user_id", "") for body in bodies if body is not None}
    said = any(subject_of(event.tenant, user) in event.subjects for user in users)
    return said and (entry.received_s or entry.at_s) <= event.erased_at.timestamp()


def _erase_entry(
    fold: Fold[TraceRow],
    name: str,
    entry: FeedbackEntry,
    event: TraceErased,
    asked: InteractionRecorded | None,
    kept: InteractionRecorded | None,
) -> None:
    gone = fold.row.entries[name] = emptied(entry)
    time = event.erased_at
    fold.outputs += [retraction(one, event.tenant, ERASED, time) for one in entry.products]
    if asked is None or kept is None or not entry.rated:
        return
    place = prompt_key(asked.tenant, asked.messages) if entry.rated is True else entry.rated
    answer = rated_answer(kept, name, gone, None, time, place, None)
    fold.outputs.append(Output(RATED, place, answer, answer.rated_id, time))
