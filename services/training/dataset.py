"""Dataset rows from preference events: chosen and rejected answers, demonstrations. Pure.

A prompt is trained on, or held out, never both; pairs that are set apart train only the
evaluation's judge (see `sides`).
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from services.training.caps import cap_shares
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    SEGMENTS,
    TRAIN,
    AboutPrompt,
    Demonstration,
    LabelledAnswer,
    LazyRows,
    Pair,
    Row,
    answer_of,
    pair_of,
    prompt_of,
)
from services.training.machine_made import people_made, within_shares
from services.training.pair_quality import quality_card, similarity
from services.training.policy import weighted
from services.training.sides import DatasetRules, assign, digest, is_held_out, rank
from shared.contracts.events.base import Event, utc
from shared.contracts.events.preferences import (
    PairSource,
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.prompt_key import normal_text
from shared.rater_marks import RaterChoice, suspicions

TENANT = "tenant"
"""Name of whose a row is, in its metadata and in the card."""
COMPARED = frozenset({PairSource.vote.value, PairSource.preference.value})
"""Sources of pairs whose two answers a person saw beside each other."""
R = TypeVar("R", Pair, LabelledAnswer, Pair | LabelledAnswer)


@dataclass(frozen=True)
class Selection:
    """The rows of each file, why others were refused, and what the card says."""

    files: Mapping[str, Sequence[Row]]
    refused: Mapping[str, int]
    card: Mapping[str, Mapping[str, int]]

    def with_refused(self, **counts: int) -> Selection:
        """The selection with further rows counted as left out, by reason."""
        refused = Counter(self.refused) + Counter(counts)
        return replace(self, refused=dict(sorted(refused.items())))


class PreferenceFold:
    """One model's pairs and unpaired prompts, as the log's last word on each has it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._pairs: dict[str, Pair] = {}
        self._answers: dict[str, LabelledAnswer] = {}
        self._closed: set[str] = set()
        """Ids of those whose key is destroyed: their texts are empty, and their retraction comes."""
        self.retracted = 0

    def apply(self, event: Event) -> None:
        """Fold one event of `preferences.v1`, in the order of its partition."""
        match event:
            case PreferencePair() | UnpairedExample() if event.encrypted is not None:
                if event.model == self._model:
                    self._pairs.pop(event.pair_id, None)
                    self._answers.pop(event.pair_id, None)
                    self._closed.add(event.pair_id)
            case PreferencePair() if event.model == self._model:
                self._pairs[event.pair_id] = pair_of(event)
            case UnpairedExample() if event.model == self._model:
                self._answers[event.pair_id] = answer_of(event)
            case PreferenceRetracted():
                known = self._pairs.pop(event.pair_id, None)
                answer = self._answers.pop(event.pair_id, None)
                closed = event.pair_id in self._closed
                self._closed.discard(event.pair_id)
                self.retracted += known is not None or answer is not None or closed
            case _:
                pass

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs that stand, by id."""
        return tuple(self._pairs[name] for name in sorted(self._pairs))

    @property
    def answers(self) -> tuple[LabelledAnswer, ...]:
        """Unpaired examples that stand, by id."""
        return tuple(self._answers[name] for name in sorted(self._answers))


def select_pairs(
    pairs: Iterable[Pair],
    judged: Iterable[Pair],
    prompts: Iterable[AboutPrompt],
    rules: DatasetRules,
) -> Selection:
    """Rows of a preference dataset.

    Args:
        pairs: What may be trained on.
        judged: Pairs that are set apart for the judge.
        prompts: Further prompts to evaluate on, such as those of unpaired examples.
        rules: Checks and shares.

    """
    refused: Counter[str] = Counter()
    sides = assign(clean_pairs(pairs, rules, refused), clean_pairs(judged, rules, refused), rules)
    refused += sides.refused
    heldout = people_made(sides.heldout, refused)
    train = LazyRows(capped(sides.train, rules, refused), lambda pair: trained_row(pair, rules))
    pools = (
        heldout,
        _trainable(prompts, refused),
        sides.judge,
    )
    return Selection(
        files={
            TRAIN: train,
            HELDOUT: [pair.row() for pair in heldout],
            JUDGE: [pair.row() for pair in people_made(sides.judge, refused)],
            PROMPTS: evaluation_prompts(
                pools, {digest(pair.prompt) for pair in sides.train}, rules
            ),
        },
        refused={name: count for name, count in sorted(refused.items()) if count},
        card=card_of(train, raters=sides.raters, rules=rules),
    )


def select_demonstrations(given: Iterable[Demonstration], rules: DatasetRules) -> Selection:
    """Rows of a dataset for supervised fine-tuning."""
    refused: Counter[str] = Counter()
    kept: dict[tuple[str, str], Demonstration] = {}
    for row in sorted(given, key=lambda row: row.row_id):
        identity = (row.prompt, row.answer)
        if (reason := row.asked.refusal or machine_refusal(row, rules)) is not None:
            refused[reason] += 1
        elif not row.messages:
            refused["no_prompt"] += 1
        elif len(row.answer.strip()) <= rules.min_chars:
            refused["too_short"] += 1
        elif identity in kept:
            refused["duplicate"] += 1
        else:
            kept[identity] = row
    train = within_shares(
        [row for row in kept.values() if not is_held_out(row.prompt, rules)],
        lambda row: row.row_id,
        rules,
        refused,
    )
    heldout = people_made([row for row in kept.values() if is_held_out(row.prompt, rules)], refused)
    rows = LazyRows(train, lambda row: trained_row(row, rules))
    trained_prompts = {digest(row.prompt) for row in train}
    return Selection(
        files={
            TRAIN: rows,
            HELDOUT: [row.row() for row in heldout],
            JUDGE: [],
            PROMPTS: evaluation_prompts((heldout,), trained_prompts, rules),
        },
        refused={name: count for name, count in sorted(refused.items()) if count},
        card=card_of(rows, raters=0, rules=rules),
    )


def demonstrations_of(pairs: Iterable[Pair]) -> tuple[Demonstration, ...]:
    """What people wrote themselves: the better side of corrections and demonstrations."""
    written = {PairSource.correction.value, PairSource.demonstration.value}
    return tuple(
        Demonstration(
            pair.pair_id,
            pair.messages,
            pair.chosen,
            pair.meta,
            pair.tools,
            pair.chosen_turn,
            pair.untrainable,
            pair.tenant,
        )
        for pair in pairs
        if not pair.panel and pair.meta.get("source") in written
    )


def trained_row(one: Pair | LabelledAnswer | Demonstration, rules: DatasetRules) -> Row:
    """A line of what is trained on, which says whose it is."""
    row = one.row()
    if not one.tenant or not rules.describe_tenants:
        return row
    return {**row, "meta": {**row["meta"], TENANT: one.tenant}}


def capped(rows: Sequence[R], rules: DatasetRules, refused: Counter[str]) -> list[R]:
    """Rows without those beyond a tenant's, a rater's or machines' share, or too far off policy.

    What is left out is counted.
    """
    within = cap_shares(rows, _tenant_of, _name_of, rules.tenant_share)
    refused["tenant_cap"] += len(rows) - len(within)
    kept = cap_shares(within, _raters_of, _name_of, rules.rater_share)
    refused["rater_cap"] += len(within) - len(kept)
    near = weighted(kept, rules)
    refused["off_policy"] += len(kept) - len(near)
    return within_shares(near, _name_of, rules, refused)


def unsuspicious(rows: Sequence[R], rules: DatasetRules, refused: Counter[str]) -> list[R]:
    """Rows without the choices of one rater that are suspicious, which `refused` counts."""
    marked = suspicions(filter(None, map(choice_of, rows)), rules.raters)
    refused.update(marked.values())
    return [row for row in rows if row.name not in marked]


def choice_of(row: Pair | LabelledAnswer) -> RaterChoice | None:
    """What one rater chose; None where several did, none is known, or the time is not."""
    if len(row.raters) != 1 or not row.meta.get("created_at"):
        return None
    compared = isinstance(row, Pair)
    return RaterChoice(
        name=row.name,
        rater=f"{row.tenant}/{row.raters[0]}",
        at=datetime.fromisoformat(row.meta["created_at"]),
        side=row.chosen_side if compared else "",
        chosen_version=row.meta.get("chosen_version", "") if compared else "",
        rejected_version=row.meta.get("rejected_version", "") if compared else "",
    )


def _tenant_of(row: Pair | LabelledAnswer) -> tuple[str, ...]:
    return (row.tenant,) if row.tenant else ()


def _raters_of(row: Pair | LabelledAnswer) -> tuple[str, ...]:
    return tuple(f"{row.tenant}/{rater}" for rater in row.raters)


def _name_of(row: Pair | LabelledAnswer) -> str:
    return row.name


def unexpired(rows: Iterable[R], rules: DatasetRules) -> tuple[list[R], int]:
    """Rows that are young enough, and how many are not.

    Age is counted from the newest row, not from the clock, so that a rebuild keeps the same rows.
    One without a time never expires.
    """
    known = list(rows)
    times = [row.meta["created_at"] for row in known if row.meta.get("created_at")]
    if not rules.max_age_days or not times:
        return known, 0
    newest = max(map(datetime.fromisoformat, times))
    oldest = utc(newest - timedelta(days=rules.max_age_days))
    kept = [row for row in known if (row.meta.get("created_at") or oldest) >= oldest]
    return kept, len(known) - len(kept)


def refusal(pair: Pair, rules: DatasetRules) -> str | None:
    """Why this pair alone is not trained on, or None."""
    if (reason := pair.asked.refusal) is not None:
        return reason
    chosen, rejected = pair.chosen.strip(), pair.rejected.strip()
    if not pair.messages:
        return "no_prompt"
    if (reason := machine_refusal(pair, rules)) is not None:
        return reason
    if min(len(chosen), len(rejected)) <= rules.min_chars:
        return "too_short"
    if normal_text(chosen) == normal_text(rejected):
        return "same_answers"
    if pair.chosen_turn is not None or pair.rejected_turn is not None:
        return None  # calls of tools have no length or sentences to compare
    source = pair.meta.get("source")
    if len(chosen) <= _length_ratio(source, rules) * len(rejected):
        return "chosen_shorter"
    if source != PairSource.correction and similarity(chosen, rejected) >= rules.similarity:
        return "similar_answers"
    return None


def _length_ratio(source: str | None, rules: DatasetRules) -> float:
    """The share of the rejected answer's length that a chosen one must exceed.

    Who compared two answers chose the shorter one on purpose. To leave such votes out and keep those
    for the longer answer would teach, and have the judge reward, length that people do not want.
    """
    if source not in COMPARED or rules.compared_length_ratio is None:
        return rules.length_ratio
    return rules.compared_length_ratio


def machine_refusal(row: AboutPrompt, rules: DatasetRules) -> str | None:
    """Why a row that a machine made is not trained on, or None."""
    if row.source == PairSource.synthetic and not rules.synthetic:
        return "synthetic"
    if row.machine_made and row.meta.get("category") in rules.people_only:
        return "people_only"
    return None


def clean_pairs(pairs: Iterable[Pair], rules: DatasetRules, refused: Counter[str]) -> list[Pair]:
    """Pairs that can be trained on, by id; the others are counted by reason in `refused`."""
    sound: list[Pair] = []
    better: dict[bytes, bytes] = {}
    """Question -> the answer that was chosen first."""
    contradicted: set[bytes] = set()
    of_people: set[bytes] = set()
    """Questions that a person has judged."""
    # People first: where they have judged, a machine's word is not asked for, only refused.
    for pair in sorted(pairs, key=lambda pair: (pair.machine_made, pair.pair_id)):
        reason = refusal(pair, rules)
        if reason is not None:
            refused[reason] += 1
            continue
        question, chosen = _question(pair)
        agrees = better.setdefault(question, chosen) == chosen
        if not pair.machine_made:
            of_people.add(question)
        elif question in of_people and not agrees and question not in contradicted:
            refused["against_people"] += 1
            continue
        if not agrees:
            contradicted.add(question)
        sound.append(pair)
    kept: dict[bytes, Pair] = {}
    for pair in sound:
        question, _ = _question(pair)
        if question in contradicted:
            refused["contradictory"] += 1
        elif question in kept:
            refused["duplicate"] += 1
        else:
            kept[question] = pair
    return list(kept.values())


def _question(pair: Pair) -> tuple[bytes, bytes]:
    """What stands for a prompt and two answers, whichever was preferred, and for the preferred."""
    chosen, rejected = normal_text(pair.chosen), normal_text(pair.rejected)
    return digest(pair.prompt, *sorted((chosen, rejected))), digest(chosen)


def evaluation_prompts(
    pools: Iterable[Iterable[AboutPrompt]], trained: set[bytes], rules: DatasetRules
) -> list[Row]:
    """Prompts whose digest is not among those trained on: earlier pools first, within one by hash."""
    found: dict[str, Row] = {}
    for pool in pools:
        fresh = {one.prompt: one for one in pool if one.messages}
        for key in sorted(fresh, key=lambda key: (rank(key), key)):
            if len(found) < rules.prompts and key not in found and digest(key) not in trained:
                found[key] = _prompt_row(fresh[key], rules)
    return list(found.values())


def _prompt_row(one: AboutPrompt, rules: DatasetRules) -> Row:
    """A prompt with the segments that it belongs to, which the evaluation compares."""
    told = {name: one.meta[name] for name in SEGMENTS if one.meta.get(name)}
    return {**one.asked.row(), **({"meta": told} if told and rules.describe_prompts else {})}


def card_of(rows: Sequence[Row], *, raters: int, rules: DatasetRules) -> dict[str, dict[str, int]]:
    """What is trained on, counted by origin, segment and, of several, tenant; its pairs' quality."""
    prompts = {digest(prompt_of(row).normal) for row in rows}
    names = ("source", *SEGMENTS, "chosen_version", "rejected_version")
    tallies = {name: Counter[str]() for name in names}
    tenants = Counter[str]()
    for row in rows:
        tenants.update([str(row["meta"][TENANT])] if TENANT in row["meta"] else [])
        for name, tally in tallies.items():
            tally[str(row["meta"].get(name) or "unknown")] += 1
    card: dict[str, dict[str, int]] = {
        "counts": {"rows": len(rows), "raters": raters, "prompts": len(prompts)}
    }
    card |= {name: dict(sorted(tally.items())) for name, tally in tallies.items()}
    if rules.describe_tenants and len(tenants) > 1:
        card[TENANT] = dict(sorted(tenants.items()))
    if rules.describe_quality and any("chosen" in row for row in rows):
        card["quality"] = quality_card(row for row in rows if "chosen" in row)
    return card


def _trainable(prompts: Iterable[AboutPrompt], refused: Counter[str]) -> list[AboutPrompt]:
    """Prompts that may be asked in an evaluation; the others are counted."""
    kept: list[AboutPrompt] = []
    for prompt in prompts:
        if (reason := prompt.asked.refusal) is None:
            kept.append(prompt)
        else:
            refused[f"prompt_{reason}"] += 1
    return kept
