"""Dataset rows from preference events: chosen and rejected answers, demonstrations. Pure.

A prompt is trained on, or held out, never both; pairs that are set apart train only the
evaluation's judge (see `sides`).
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

from services.training.caps import cap_shares
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    SEGMENTS,
    TRAIN,
    Demonstration,
    LabelledAnswer,
    Pair,
    Row,
    prompt_of,
)
from services.training.evaluation_prompts import Whole, evaluation_prompts, itself
from services.training.machine_made import people_made, within_shares
from services.training.policy import weighted
from services.training.row_checks import clean_pairs, demonstration_finding
from services.training.row_store import RowKey
from services.training.sides import DatasetRules, RatedPair, assign, digest, prompts_of
from services.training.spill import SpilledTable, keep, made, sorted_rows, spilled
from shared.contracts.events.base import utc
from shared.contracts.events.preferences import (
    PairSource,
)
from shared.pair_quality import quality_card
from shared.rater_marks import RaterChoice, suspicions

TENANT = "tenant"
"""Name of whose a row is, in its metadata and in the card."""


class RatedRow(RatedPair, Protocol):
    """What the checks ask of a row: whole rows and the keys of stored ones have it."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def meta(self) -> Mapping[str, str]:
        """What is known of it."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def label(self) -> bool | None:
        """Whether a single answer is good; None for a pair, which is both."""
        ...

    @property
    def source(self) -> str:
        """Where it is from."""
        ...

    @property
    def machine_made(self) -> bool:
        """Whether a machine made or labelled it."""
        ...


R = TypeVar("R", bound=RatedRow)


@dataclass(frozen=True)
class Selection:
    """The rows of each file, why others were refused, and what the card says."""

    files: Mapping[str, Collection[Row]]
    refused: Mapping[str, int]
    card: Mapping[str, Mapping[str, int]]

    def with_refused(self, **counts: int) -> Selection:
        """The selection with further rows counted as left out, by reason."""
        refused = Counter(self.refused) + Counter(counts)
        return replace(self, refused=dict(sorted(refused.items())))


def select_pairs(
    pairs: Iterable[Pair | RowKey],
    judged: Iterable[Pair | RowKey],
    prompts: Iterable[Pair | LabelledAnswer | RowKey],
    rules: DatasetRules,
    whole: Whole = itself,
) -> Selection:
    """Rows of a preference dataset.

    Args:
        pairs: What may be trained on.
        judged: Pairs that are set apart for the judge.
        prompts: Further prompts to evaluate on, such as those of unpaired examples.
        rules: Checks and shares.
        whole: Gives the row of a key.

    """
    refused: Counter[str] = Counter()
    sides = assign(clean_pairs(pairs, rules, refused), clean_pairs(judged, rules, refused), rules)
    refused += sides.refused
    heldout = people_made(sides.heldout, refused)
    train = made(
        capped(sides.train, rules, refused), lambda pair: (trained_row(whole(pair), rules),)
    )
    lines = partial(lines_of, whole=whole)
    pools = (
        heldout,
        _trainable(prompts, refused),
        sides.judge,
    )
    return Selection(
        files={
            TRAIN: train,
            HELDOUT: lines(heldout),
            JUDGE: lines(people_made(sides.judge, refused)),
            PROMPTS: evaluation_prompts(pools, prompts_of(sides.train), rules, whole),
        },
        refused={name: count for name, count in sorted(refused.items()) if count},
        card=card_of(train, raters=sides.raters, rules=rules),
    )


def select_demonstrations(
    given: Iterable[Demonstration | RowKey], rules: DatasetRules, whole: Whole = itself
) -> Selection:
    """Rows of a dataset for supervised fine-tuning; `whole` gives the row of a key."""
    refused: Counter[str] = Counter()
    known = SpilledTable[bytes]()

    def is_new(row: Demonstration | RowKey) -> bool:
        found = row.finding if isinstance(row, RowKey) else demonstration_finding(row, rules)
        if found.refusal is not None or not known.add(found.question):
            refused[found.refusal or "duplicate"] += 1
            return False
        return True

    kept = keep(sorted_rows(given, lambda row: row.name), is_new)
    train = within_shares(
        keep(kept, lambda row: not row.prompt_rank < rules.heldout_share), rules, refused
    )
    heldout = people_made(keep(kept, lambda row: row.prompt_rank < rules.heldout_share), refused)
    rows = made(train, lambda row: (trained_row(whole(row), rules),))
    trained_prompts = prompts_of(train)
    return Selection(
        files={
            TRAIN: rows,
            HELDOUT: lines_of(heldout, whole),
            JUDGE: [],
            PROMPTS: evaluation_prompts((heldout,), trained_prompts, rules, whole),
        },
        refused={name: count for name, count in sorted(refused.items()) if count},
        card=card_of(rows, raters=0, rules=rules),
    )


def demonstrations_of(pairs: Iterable[Pair]) -> Iterator[Demonstration]:
    """What people wrote themselves: the better side of corrections and demonstrations."""
    written = {PairSource.correction.value, PairSource.demonstration.value}
    for pair in pairs:
        if not pair.panel and pair.meta.get("source") in written:
            yield Demonstration(
                pair.pair_id,
                pair.messages,
                pair.chosen,
                pair.meta,
                pair.tools,
                pair.chosen_turn,
                pair.untrainable,
                pair.tenant,
            )


def lines_of(rows: Collection[Any], whole: Whole) -> Collection[Row]:
    """The lines of rows or of keys, made whenever they are read."""
    return made(rows, lambda row: (whole(row).row(),))


def trained_row(one: Pair | LabelledAnswer | Demonstration, rules: DatasetRules) -> Row:
    """A line of what is trained on, which says whose it is."""
    row = one.row()
    if not one.tenant or not rules.describe_tenants:
        return row
    return {**row, "meta": {**row["meta"], TENANT: one.tenant}}


def capped(rows: Collection[R], rules: DatasetRules, refused: Counter[str]) -> Collection[R]:
    """Rows without those beyond a tenant's, a rater's or machines' share, or too far off policy.

    What is left out is counted.
    """
    within = cap_shares(rows, _tenant_of, _name_of, rules.tenant_share)
    refused["tenant_cap"] += len(rows) - len(within)
    kept = cap_shares(within, _raters_of, _name_of, rules.rater_share)
    refused["rater_cap"] += len(within) - len(kept)
    near = weighted(kept, rules)
    refused["off_policy"] += len(kept) - len(near)
    return within_shares(near, rules, refused)


def unsuspicious(
    kinds: Sequence[Collection[R]], rules: DatasetRules, refused: Counter[str]
) -> list[Collection[R]]:
    """Rows of each kind without one rater's suspicious choices, which `refused` counts."""
    choices = (choice_of(row) for rows in kinds for row in rows)
    marked = suspicions(filter(None, choices), rules.raters)
    refused.update(marked.values())
    return [keep(rows, lambda row: row.name not in marked) if marked else rows for rows in kinds]


def choice_of(row: RatedRow) -> RaterChoice | None:
    """What one rater chose; None where several did, none is known, or the time is not."""
    if len(row.raters) != 1 or not row.meta.get("created_at"):
        return None
    compared = row.label is None
    return RaterChoice(
        name=row.name,
        rater=f"{row.tenant}/{row.raters[0]}",
        at=datetime.fromisoformat(row.meta["created_at"]),
        side=getattr(row, "chosen_side", "") if compared else "",
        chosen_version=row.meta.get("chosen_version", "") if compared else "",
        rejected_version=row.meta.get("rejected_version", "") if compared else "",
    )


def _tenant_of(row: RatedRow) -> tuple[str, ...]:
    return (row.tenant,) if row.tenant else ()


def _raters_of(row: RatedRow) -> tuple[str, ...]:
    return tuple(f"{row.tenant}/{rater}" for rater in row.raters)


def _name_of(row: RatedRow) -> str:
    return row.name


def unexpired(rows: Iterable[R], rules: DatasetRules) -> tuple[Collection[R], int]:
    """Rows that are young enough, and how many are not.

    Age is counted from the newest row, not from the clock, so that a rebuild keeps the same rows.
    One without a time never expires.
    """
    known = spilled(rows)
    if not rules.max_age_days:
        return known, 0
    times = (row.meta["created_at"] for row in known if row.meta.get("created_at"))
    newest = max(map(datetime.fromisoformat, times), default=None)
    if newest is None:
        return known, 0
    oldest = utc(newest - timedelta(days=rules.max_age_days))
    kept = keep(known, lambda row: (row.meta.get("created_at") or oldest) >= oldest)
    return kept, len(known) - len(kept)


def card_of(rows: Iterable[Row], *, raters: int, rules: DatasetRules) -> dict[str, dict[str, int]]:
    """What is trained on, counted by origin, segment and, of several, tenant; its pairs' quality."""
    prompts, count = SpilledTable[bytes](), 0
    names = ("source", *SEGMENTS, "chosen_version", "rejected_version")
    tallies = {name: Counter[str]() for name in names}
    tenants = Counter[str]()

    def compared() -> Iterator[Row]:
        """The rows that are pairs; all of them are counted."""
        nonlocal count
        for row in rows:
            count += 1
            prompts.add(digest(prompt_of(row).normal))
            tenants.update([str(row["meta"][TENANT])] if TENANT in row["meta"] else [])
            for name, tally in tallies.items():
                tally[str(row["meta"].get(name) or "unknown")] += 1
            if rules.describe_quality and "chosen" in row:
                yield row

    quality = quality_card(compared())
    card: dict[str, dict[str, int]] = {
        "counts": {"rows": count, "raters": raters, "prompts": len(prompts)}
    }
    card |= {name: dict(sorted(tally.items())) for name, tally in tallies.items()}
    if rules.describe_tenants and len(tenants) > 1:
        card[TENANT] = dict(sorted(tenants.items()))
    if quality:
        card["quality"] = quality
    return card


def _trainable(
    prompts: Iterable[Pair | LabelledAnswer | RowKey], refused: Counter[str]
) -> Iterator[Pair | LabelledAnswer | RowKey]:
    """Prompts that may be asked in an evaluation; the others are counted."""
    for one in prompts:
        reason = one.finding.refusal if isinstance(one, RowKey) else one.asked.refusal
        if reason is None:
            yield one
        else:
            refused[f"prompt_{reason}"] += 1
