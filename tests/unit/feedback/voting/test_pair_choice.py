"""Which two of several answers are shown: chosen by a scorer's scores, over real HTTP."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from services.feedback.comparisons import ComparisonRequest
from services.feedback.errors import RouterUnavailable
from services.feedback.pair_choice import MAX_RETRY_S, RETRY_S, PairChoice
from services.feedback.router_client import Answer, RouterClient
from services.feedback.voting.plan import VotingPlan
from services.feedback.voting.prompts import PromptQueue
from shared.contracts.events.base import Message
from shared.contracts.events.votes import PAIR_LABEL, Choice
from shared.http.reward_scores import NotScored, RewardScores
from shared.information import Score
from shared.testing.clock import ManualClock
from tests.support.voting import PLAN, RATER, VotingHarness, voting_service

QUESTION = (Message(role="user", content="Where is my parcel?"),)


class ScoresByText(RewardScores):
    """Scores by text; a text without one is refused."""

    def __init__(self, scores: dict[str, Score]) -> None:
        self.scores = scores
        self.asked = 0

    async def with_uncertainty(self, model: str, answers: Any) -> list[Score]:
        self.asked += 1
        try:
            return [self.scores[text] for _, text in answers]
        except KeyError:
            raise NotScored("there is no reward model") from None


def choice(scores: dict[str, Score], clock: ManualClock | None = None) -> PairChoice:
    found = PairChoice.of(ScoresByText(scores), clock or ManualClock(), 2)
    assert found is not None
    return found


async def test_the_pair_that_is_hardest_to_tell_apart_is_chosen() -> None:
    scores = {"a b": Score(4.0), "c d": Score(1.0), "e f": Score(1.1), "g h": Score(-3.0)}
    chosen = await choice(scores).most_informative("m", QUESTION, ["a b", "c d"], ["g h", "e f"])
    assert chosen == (1, 1)


async def test_a_pair_that_the_heads_dispute_is_chosen_before_one_they_agree_on() -> None:
    sure = {"a b": Score(2.0), "c d": Score(2.0), "e f": Score(0.0), "g h": Score(0.0)}
    disputed = sure | {"c d": Score(2.0, 5.0), "g h": Score(0.0, 5.0)}
    left, right = ["a b", "c d"], ["e f", "g h"]
    assert await choice(disputed).most_informative("m", QUESTION, left, right) == (1, 1)


async def test_equal_answers_are_no_pair() -> None:
    scores = {"a b": Score(0.0), "c d": Score(1.0)}
    chosen = await choice(scores).most_informative("m", QUESTION, ["a b", "a b"], ["a b", "c d"])
    assert chosen in {(0, 1), (1, 1)}
    assert await choice(scores).most_informative("m", QUESTION, ["a b"] * 2, ["a b"] * 2) is None


async def test_without_scores_each_side_answers_once_for_a_while_that_grows() -> None:
    clock = ManualClock()
    pairs = choice({}, clock)
    assert pairs.candidates == 2
    assert await pairs.most_informative("m", QUESTION, ["a", "b"], ["c", "d"]) is None
    assert pairs.candidates == 1
    assert await pairs.most_informative("m", QUESTION, ["a", "b"], ["c", "d"]) is None
    clock.advance(RETRY_S)
    assert pairs.candidates == 2, "what failed meanwhile prolongs nothing"
    await pairs.most_informative("m", QUESTION, ["a", "b"], ["c", "d"])
    clock.advance(RETRY_S)
    assert pairs.candidates == 1
    clock.advance(MAX_RETRY_S)
    assert pairs.candidates == 2


def test_one_answer_of_each_side_leaves_nothing_to_choose() -> None:
    assert PairChoice.of(ScoresByText({}), ManualClock(), 1) is None


async def vote_next(harness: VotingHarness) -> Any:
    shown = await harness.ballots.next(RATER)
    await harness.ballots.vote(RATER, shown.comparison_id, Choice.left)
    return shown


async def test_the_page_shows_the_most_informative_pair_and_the_vote_says_so() -> None:
    async with voting_service(candidates=2, drawn_share=0.0) as (_, harness):
        # The two seeds of a version follow each other, so that one is odd.
        harness.router.texts = {
            "assistant-v1.0": "It is {seed} there",
            "assistant-v1.1": "We look {seed} here",
        }
        harness.router.scores = {"is odd": 0.1, "is even": 5.0, "look odd": -5.0, "look even": 0.0}
        shown = await vote_next(harness)
        await harness.ballots.reserve.close()
        events = harness.events()
    assert harness.router.scored[0] == 4
    texts = {shown.left.completion, shown.right.completion}
    assert texts == {"It is odd there", "We look even here"}
    assert events[0].context.labels[PAIR_LABEL] == "informative"
    assert shown.left.trace_id != shown.right.trace_id
    assert {shown.left.version, shown.right.version} == {"assistant-v1.0", "assistant-v1.1"}


@pytest.mark.parametrize("status", [404, 503])
async def test_without_a_reward_model_the_page_goes_on_as_without_the_choice(status: int) -> None:
    async with voting_service(candidates=2, drawn_share=0.0) as (_, harness):
        harness.router.score_status = status
        for _ in range(3):
            await vote_next(harness)
        await harness.ballots.reserve.close()
        events = harness.events()
    assert len(harness.router.scored) == 1, "the scorer was asked again at once"
    assert len(harness.router.asked) <= 4 + 3 * 2, "answers were generated that nothing scores"
    assert len(events) == 3
    assert not any(PAIR_LABEL in event.context.labels for event in events)


async def test_an_answer_that_fails_beside_the_first_two_stops_nothing() -> None:
    class TiredRouter(RouterClient):
        """Each version answers once."""

        def __init__(self) -> None:
            self.asked: list[str] = []

        async def answer(self, question: Any, version: str, *_: Any, **__: Any) -> Answer:
            self.asked.append(version)
            if self.asked.count(version) > 1:
                raise RouterUnavailable("the engines are full", retry_after_s=2)
            return Answer(version, f"of-{version}", f"{version} speaks")

    router = TiredRouter()
    async with voting_service(candidates=4, drawn_share=0.0) as (_, harness):
        harness.ballots.reserve._comparisons._router = router
        await harness.ballots.next(RATER)
        assert len(router.asked) >= 8


async def test_a_question_of_one_s_own_waits_for_two_answers_only() -> None:
    async with voting_service(candidates=4, drawn_share=0.0) as (_, harness):
        await harness.ballots.ask(RATER, "How tall is it?")
        assert len(harness.router.asked) == 2
        assert not harness.router.scored


async def test_candidates_count_among_what_is_answered_at_one_time() -> None:
    request = ComparisonRequest(model="assistant", messages=QUESTION)
    async with voting_service(candidates=4, drawn_share=0.0) as (_, harness):
        comparisons = harness.ballots.reserve._comparisons
        with comparisons._asks(6):
            left, right = await comparisons._candidates(request, "", 4)
    assert (len(left), len(right)) == (2, 2), "eight may be answered at one time"


async def test_a_share_of_comparisons_is_on_any_two_answers() -> None:
    async with voting_service(candidates=2, drawn_share=1.0) as (_, harness):
        await vote_next(harness)
        await harness.ballots.reserve.close()
        assert not harness.router.scored
        assert PAIR_LABEL not in harness.events()[0].context.labels


def test_a_prompt_that_tells_nothing_is_asked_by_the_unranked_share() -> None:
    plan = VotingPlan.model_validate(
        {"prompts": [{"text": "What is new?"}, {"text": "What is dear?", "information": 1.0}]}
    )
    queue, rng = PromptQueue(plan), random.Random(3)

    def asked(*, ranked: bool) -> Counter[str]:
        chosen = [queue.choose({}, set(), rng, ranked=ranked) for _ in range(200)]
        return Counter(one[0].text for one in chosen if one)

    assert asked(ranked=True) == {"What is dear?": 200}
    assert asked(ranked=False)["What is new?"] > 60


async def test_no_prompt_of_the_plan_waits_for_ever() -> None:
    """Each day and each rater begin with the same best prompts, which a day's votes never exhaust."""
    prompts = [{"text": f"What is {n}?", "information": 0.0 if n else 1.0} for n in range(2)]
    plan = VotingPlan.model_validate(PLAN.model_dump() | {"prompts": prompts})
    first: Counter[str] = Counter()
    async with voting_service(plan, drawn_share=0.5) as (_, harness):
        for _ in range(30):
            shown = await harness.ballots.next(RATER)
            first[shown.turns[-1].content] += 1
            await harness.ballots.reserve.close()
            harness.raters.open.clear()
    assert 3 <= first["What is 1?"] <= 15
