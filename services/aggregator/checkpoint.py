"""The checkpoint of a partition: a head, and parts of which a batch writes those that changed.

The head has the offsets that the aggregates include, and names each part with the slot that its newest
value is in. A changed part is written to the other of its two slots, before the head. Killed in between,
a worker leaves the slots that the head names as they were; what it wrote is written over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import orjson

from services.aggregator.aggregates import (
    AUDIENCE,
    FEEDBACK_COUNTS,
    FIGURES,
    HOURS,
    MINUTES,
    OUTCOMES,
    SCORES,
    VOTER_SCORES,
    VOTES,
    WINDOWS_S,
    Aggregates,
    Part,
    Sums,
)
from services.aggregator.errors import PartMissing, UnknownFormat
from services.aggregator.rows import SEPARATOR, checkpoint_key

FORMAT = 6
"""Of a checkpoint and the rows it covers; it rises whenever an older aggregator could not read a
newer one's, or the reverse. 2: the rated answers to a prompt are kept without its messages. 3: a
feedback's row says when its revision was received. 4: signals, sessions and audiences are counted. 5:
scores are counted by tenant and API key, too. 6: a checkpoint has parts."""
READ_FORMATS = (1, 2, 3, 4, 5, FORMAT)
AUDIENCE_FORMAT = 4
VOTER_FORMAT = 5
PARTS_FORMAT = 6

COUNTS = (FEEDBACK_COUNTS, SCORES, VOTER_SCORES, VOTES, OUTCOMES, AUDIENCE)
SHOWN = (*(part.kind for part in COUNTS), MINUTES, HOURS)
"""Kinds of parts that metrics are made of: all but the quality windows, which are events."""
KINDS = (*SHOWN, *WINDOWS_S)

Slots = dict[Part, int]
"""Part -> the slot that has its newest value, 0 or 1."""


def part_key(partition: int, part: Part, slot: int) -> bytes:
    """Key of a part's slot on the changelog."""
    place = f"{part.kind}{SEPARATOR}{part.start}{SEPARATOR}{slot}".encode()
    return part_prefix(partition) + place


def part_prefix(partition: int) -> bytes:
    """What the keys of a partition's parts begin with."""
    return checkpoint_key(partition) + SEPARATOR.encode()


def part_of(key: bytes) -> Part:
    """The part that a key is of."""
    _, _, kind, start, _ = key.split(SEPARATOR.encode())
    return Part(kind.decode(), int(start))


def encode_head(aggregates: Aggregates, slots: Slots) -> bytes:
    """The head of a checkpoint whose parts are in their slots."""
    named: dict[str, dict[str, int]] = {}
    for (kind, start), slot in slots.items():
        named.setdefault(kind, {})[str(start)] = slot
    return orjson.dumps(
        [
            FORMAT,
            aggregates.offsets,
            aggregates.clock_s,
            aggregates.emitted_s,
            sorted(aggregates.changed),
            aggregates.dropped,
            named,
        ]
    )


def encode_part(aggregates: Aggregates, part: Part) -> bytes | None:
    """A part's value, or None where nothing of it is left."""
    held: Any
    match part.kind:
        case "feedback" | "votes" | "audience":
            held = [[*key, count] for key, count in getattr(aggregates, part.kind).items()]
        case "scores" | "voter_scores":
            held = [[key, sums] for key, sums in getattr(aggregates, part.kind).items()]
        case "outcomes":
            held = aggregates.outcomes
        case _:
            held = _sums(aggregates, part.kind).get(part.start)
    return orjson.dumps(held) if held else None


def encode_parts(aggregates: Aggregates, parts: Iterable[Part]) -> dict[Part, bytes | None]:
    """The values of some parts."""
    return {part: encode_part(aggregates, part) for part in parts}


def all_parts(aggregates: Aggregates, kinds: Collection[str] = KINDS) -> Iterator[Part]:
    """The parts of some kinds that may hold something."""
    yield from (part for part in COUNTS if part.kind in kinds)
    for kind in (MINUTES, HOURS, *WINDOWS_S):
        if kind in kinds:
            yield from (Part(kind, start) for start in _sums(aggregates, kind))


def named_slots(head: bytes) -> Slots:
    """The parts that a head names; none in a format that had none."""
    known, *fields = orjson.loads(head)
    return _slots(fields[5]) if known >= PARTS_FORMAT else {}


def decode_checkpoint(
    head: bytes, read: Callable[[Part, int], bytes | None], kinds: Collection[str] = KINDS
) -> Aggregates:
    """The aggregates of a checkpoint.

    Args:
        head: As it was stored.
        read: The stored value of a part in a slot.
        kinds: Kinds of parts to read; what belongs to others is left empty.

    Raises:
        UnknownFormat: another generation of the aggregator wrote it.
        PartMissing: a part that the head names is not there.

    """
    known, *fields = orjson.loads(head)
    if known not in READ_FORMATS:
        raise UnknownFormat(
            f"checkpoint: this aggregator reads format {' and '.join(map(str, READ_FORMATS))}, "
            f"not {str(known)[:20]}; run the "
            "version that wrote it, or drop the table's changelog topic, the group's offsets and the "
            "workers' directories to count again from the log"
        )
    if known < PARTS_FORMAT:
        return _decode_whole(known, fields)
    offsets, clock_s, emitted_s, changed, dropped, named = fields
    aggregates = Aggregates(
        offsets=offsets,
        clock_s=clock_s,
        emitted_s=emitted_s,
        changed={tuple(key) for key in changed},  # type: ignore[misc]
        dropped=dropped,
    )
    for part, slot in _slots(named).items():
        if part.kind in kinds:
            stored = read(part, slot)
            if stored is None:
                raise PartMissing(
                    f"checkpoint: part {part.kind} {part.start} in slot {slot} is missing; drop the "
                    "worker's directory to restore it from the changelog, and where that lacks it the "
                    "changelog topic and the group's offsets to count again from the log"
                )
            _decode_part(aggregates, part, orjson.loads(stored))
    return aggregates


def _slots(named: dict[str, dict[str, int]]) -> Slots:
    return {
        Part(kind, int(start)): slot
        for kind, slots in named.items()
        for start, slot in slots.items()
    }


def _decode_part(aggregates: Aggregates, part: Part, held: Any) -> None:
    match part.kind:
        case "feedback" | "votes" | "audience":
            counts = {tuple(key): count for *key, count in held}
            setattr(aggregates, part.kind, counts)
        case "scores" | "voter_scores":
            setattr(aggregates, part.kind, {tuple(key): sums for key, sums in held})
        case "outcomes":
            aggregates.outcomes = held
        case _:
            _sums(aggregates, part.kind)[part.start] = {
                version: _wide(sums) for version, sums in held.items()
            }


def _decode_whole(known: int, fields: list[Any]) -> Aggregates:
    """The aggregates of a checkpoint without parts: all of them are to be written."""
    audience: list[Any] = fields[12] if known >= AUDIENCE_FORMAT else []
    voter_scores: list[Any] = fields[13] if known >= VOTER_FORMAT else []
    aggregates = Aggregates(
        offsets=fields[0],
        clock_s=fields[1],
        emitted_s=fields[2],
        changed={tuple(key) for key in fields[10]},  # type: ignore[misc]
        dropped=fields[11],
    )
    counts = zip(
        COUNTS, (fields[3], fields[4], voter_scores, fields[5], fields[6], audience), strict=True
    )
    for part, held in counts:
        _decode_part(aggregates, part, held)
    for kind, stamped in ((MINUTES, fields[7]), (HOURS, fields[8])):
        for stamp, versions in stamped:
            _decode_part(aggregates, Part(kind, stamp), versions)
    for (window, start, version), sums in fields[9]:
        aggregates.windows[window].setdefault(start, {})[version] = _wide(sums)
    aggregates.touched.update(all_parts(aggregates))
    return aggregates


def _sums(aggregates: Aggregates, kind: str) -> dict[int, Sums]:
    """Sums by their number or start, of minutes, hours or a window."""
    if kind == MINUTES:
        return aggregates.minutes
    return aggregates.hours if kind == HOURS else aggregates.windows[kind]


def _wide(sums: list[float]) -> list[float]:
    """A figures vector of a format that had fewer of them."""
    return [*sums, *[0.0] * (len(FIGURES) - len(sums))]
