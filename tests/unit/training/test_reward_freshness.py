"""Whether a reward model still agrees with voters: fresh votes, verdicts, and the fall beyond chance."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from services.training.dataset_rows import pair_of
from services.training.jobs import JobQueue
from services.training.reward_freshness import (
    MAX_CHARS,
    MOST_VOTES,
    SCORED_PER_LOOK,
    FreshAgreement,
    FreshVerdicts,
    KnownVerdicts,
    VotePlace,
    fallen,
    is_scorable,
)
from services.training.reward_schedule import RETRY, RewardInputs, decide_reward
from services.training.sides import DatasetRules, assign, is_rank_of_judge, set_apart
from services.training.trigger import PairCounter
from shared.contracts.events.base import Context, EncryptedTexts, Message, ToolCall
from shared.contracts.events.preferences import PairSource
from shared.contracts.events.training import RunPhase, TrainingMethod, TrainingProgress
from shared.contracts.events.versions import RewardRecord, reward_key
from shared.contracts.events.votes import INFORMATIVE, PAIR_LABEL
from shared.registry.versions import Registry
from tests.unit.training.builders import (
    MODEL,
    NOW,
    example_event,
    pair_event,
    retraction,
    reward_record,
    turns,
)

PLACE = "ratchet.preferences.v1/0"
LATER = NOW + timedelta(days=1)


def published(number: int = 1, **metrics: float) -> RewardRecord:
    figures = {"accuracy": 0.75, "tested": 200.0} | metrics
    return reward_record(f"{MODEL}-reward-v{number}", metrics=figures)


def registry(*records: RewardRecord) -> Registry:
    made = Registry()
    for record in records:
        made.apply(reward_key(record.name), record.to_json())
    return made


def agreeing(agreed: int, votes: int, number: int = 1) -> FreshAgreement:
    return FreshAgreement(published(number).name, agreed, votes)


def test_a_fall_is_told_where_even_its_upper_bound_is_below_the_published_accuracy() -> None:
    record = published()
    agreed = {count: fallen(agreeing(count, 120), record, 100) for count in range(121)}
    last = max(count for count, why in agreed.items() if why)
    assert not agreed[last + 1]
    change, next_change = (agreeing(one, 120).change(record) for one in (last, last + 1))
    assert change is not None
    assert next_change is not None
    assert change[1] < 0 <= next_change[1]
    assert agreed[60] == (
        f"{record.name} agrees with 60 of 120 votes that came since, 50%, and agreed with 75% of 200 "
        "when it was published: at least 11% less"
    )


def test_better_agreement_is_no_fall() -> None:
    assert not fallen(agreeing(120, 120), published(), 100)


def test_few_votes_another_model_and_an_unknown_accuracy_tell_nothing() -> None:
    assert fallen(agreeing(0, 100), published(), 100)
    assert not fallen(agreeing(0, 99), published(), 100)
    assert not fallen(agreeing(0, 100), published(2), 100)
    assert not fallen(agreeing(0, 100), published(tested=0.0), 100)
    assert not fallen(agreeing(0, 100), published().model_copy(update={"metrics": {}}), 100)
    assert not fallen(FreshAgreement(published().name), published(), 0)


@pytest.mark.parametrize(("now", "least", "most"), [(0.75, 0.0, 0.05), (0.65, 0.75, 1.0)])
def test_repeated_looks_seldom_err_and_find_a_fall_of_ten_points(
    now: float, least: float, most: float
) -> None:
    rng, told = random.Random(7), 0
    for _ in range(200):
        accuracy = sum(rng.random() < 0.75 for _ in range(200)) / 200
        record = published(accuracy=accuracy)
        votes = [rng.random() < now for _ in range(3000)]
        windows = (votes[max(0, n - MOST_VOTES) : n] for n in range(100, 3001, SCORED_PER_LOOK))
        told += any(fallen(agreeing(sum(one), len(one)), record, 100) for one in windows)
    assert least <= told / 200 <= most


def test_a_fall_asks_for_one_training_and_for_the_next_only_of_the_next_model() -> None:
    inputs = RewardInputs(
        model=MODEL,
        judge_pairs=100,
        min_judge_pairs=30,
        every_days=30,
        max_drift=0.2,
        agreement=agreeing(60, 120),
        min_fresh_votes=100,
    )
    queue, known = JobQueue(), registry(published())
    assert (
        decide_reward(replace(inputs, agreement=FreshAgreement()), queue, known, LATER)[0] is None
    )
    job, why = decide_reward(inputs, queue, known, LATER)
    assert job is not None
    assert (job.method, job.reason) == (TrainingMethod.reward, why)
    assert "60 of 120 votes that came since" in why
    queue.put(job)
    assert decide_reward(inputs, queue, known, LATER)[0] is None
    end = TrainingProgress(
        job_id=job.job_id,
        model=MODEL,
        method=TrainingMethod.reward,
        phase=RunPhase.rejected,
        metrics={"judge_pairs": 100.0},
        at=LATER,
    )
    queue.put(end)
    assert decide_reward(inputs, queue, known, LATER + RETRY / 2)[0] is None, "a day's pause"
    assert decide_reward(inputs, queue, known, LATER + RETRY * 2)[0] is None, "the same data"
    grown = replace(inputs, judge_pairs=110)
    assert decide_reward(grown, queue, known, LATER + RETRY * 2)[0] is not None
    queue = JobQueue()
    queue.put(job)
    queue.put(end.model_copy(update={"phase": RunPhase.succeeded}))
    newer = registry(published(), published(2).model_copy(update={"created_at": LATER}))
    assert decide_reward(inputs, queue, newer, LATER)[0] is None, "votes on the one before"
    fell = replace(inputs, agreement=agreeing(60, 120, 2))
    assert decide_reward(fell, queue, newer, LATER)[0] is not None


def test_verdicts_are_of_one_model_and_of_votes_that_stand() -> None:
    verdicts = FreshVerdicts()
    votes: list[VotePlace] = [(PLACE, offset) for offset in (3, 2, 1)]
    verdicts.renew("r1", votes)
    verdicts.put((PLACE, 3), agreed=True)
    verdicts.put((PLACE, 2), agreed=False)
    assert verdicts.agreement == FreshAgreement("r1", 1, 2)
    assert verdicts.due() == [(PLACE, 1)]
    verdicts.renew("r1", [(PLACE, 4), (PLACE, 2)])
    assert verdicts.agreement == FreshAgreement("r1", 0, 1)
    verdicts.renew("r2", votes)
    assert verdicts.agreement == FreshAgreement("r2", 0, 0)


def test_what_an_earlier_process_knew_counts_once_it_is_known_which_votes_stand() -> None:
    before = KnownVerdicts("r1", {(PLACE, 1): True, (PLACE, 2): False})
    verdicts = FreshVerdicts(before)
    assert verdicts.agreement.votes == 0
    assert verdicts.known == before
    verdicts.renew("r1", [(PLACE, 3), (PLACE, 2)])
    assert verdicts.agreement == FreshAgreement("r1", 0, 1)
    assert verdicts.due() == [(PLACE, 3)]
    assert verdicts.known == KnownVerdicts("r1", {(PLACE, 2): False})
    another = FreshVerdicts(before)
    another.renew("r2", [(PLACE, 2)])
    assert another.agreement == FreshAgreement("r2", 0, 0)
    forgotten = FreshVerdicts(before)
    forgotten.forget()
    forgotten.renew("r1", [(PLACE, 2)])
    assert forgotten.agreement.votes == 0


def test_a_look_is_bounded_and_a_vote_that_fails_lets_others_go_first() -> None:
    verdicts = FreshVerdicts()
    votes: list[VotePlace] = [(PLACE, offset) for offset in range(2 * MOST_VOTES, 0, -1)]
    verdicts.renew("r", votes)
    refused = frozenset(votes[:10])
    for look in range(9):
        due = verdicts.due()
        assert len(due) <= SCORED_PER_LOOK
        assert look == 0 or len(due) < SCORED_PER_LOOK or refused.isdisjoint(due)
        verdicts.failed(refused.intersection(due))
        for vote in due:
            if vote not in refused:
                verdicts.put(vote, agreed=True)
    assert verdicts.agreement.votes == MOST_VOTES - len(refused)
    assert set(verdicts.due()) == refused


def test_fresh_votes_are_those_since_of_raters_and_prompts_that_the_model_never_saw() -> None:
    rules, since, repeated, machines, gone, hard = DatasetRules(), 300, 400, 401, 403, 405
    events = [pair_event(number, raters=(f"rater-{number % 20}",)) for number in range(repeated)]
    _, judged = set_apart(map(pair_of, events), rules)
    judges = {int(pair.pair_id[-4:]) for pair in judged}
    learned = next(
        int(pair.pair_id[-4:])
        for pair in judged
        if int(pair.pair_id[-4:]) < since and not is_rank_of_judge(pair.prompt_rank, rules)
    )
    teacher = next(f"rater-{number}" for number in range(20) if number not in judges)
    events += [
        pair_event(repeated, messages=turns(f"question {learned}"), raters=(teacher,)),
        pair_event(machines, source=PairSource.synthetic, raters=(teacher,)),
        pair_event(gone, raters=(teacher,)),
        pair_event(hard, raters=(teacher,), context=Context(labels={PAIR_LABEL: INFORMATIVE})),
    ]
    counter = PairCounter(MODEL, rules)
    for event in events:
        counter.apply(event, PLACE, int(event.pair_id[-4:]))
    counter.apply(example_event(402), PLACE, 402)
    counter.apply(retraction(f"pair-{gone:04}"), PLACE, 404)
    places = counter.unlearned({PLACE: since}, MOST_VOTES)
    stand = [pair_of(event) for event in events if not event.pair_id.endswith(str(gone))]
    sides = assign(*set_apart(stand, rules), rules)
    trained = {int(pair.pair_id[-4:]) for side in (sides.train, sides.heldout) for pair in side}
    assert repeated in trained, "its prompt is no longer the judge's, which learned from it"
    expected = sorted((n for n in trained if since <= n < repeated), reverse=True)
    assert places == [(PLACE, number) for number in expected]
    assert len(places) > 50
    assert judges.isdisjoint(expected)
    assert counter.unlearned({PLACE: since}, 5) == places[:5]


def test_what_is_more_than_text_too_long_or_erased_is_not_sent_to_the_scorer() -> None:
    assert is_scorable(pair_event(1))
    thought = Message(role="assistant", content="a good answer 1", reasoning="Hm.")
    assert is_scorable(pair_event(1, chosen_turn=thought)), "the judge reads none of it"
    call = ToolCall(id="c", name="f", arguments="{}")
    called = Message(role="assistant", content="", tool_calls=(call,))
    for fields in (
        {"chosen_turn": called},
        {"messages": (*turns("Hm?"), called, Message(role="tool", content="7"))},
        {"messages": (*turns("Hm?"), Message(role="tool", content="7"))},
        {"messages": ()},
        {"chosen": "a" * (MAX_CHARS + 1)},
        {"encrypted": EncryptedTexts.model_construct()},
    ):
        assert not is_scorable(pair_event(1).model_copy(update=fields))
