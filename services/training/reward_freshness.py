"""Accuracy of the newest reward model on fresh votes: which it never learned from, as they came later. Pure.

It was published with its accuracy on votes of other raters and prompts than it learned from. The same
share of the same kind of votes that came since tells whether it still judges as people do.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from shared.contracts.events.preferences import PreferencePair
from shared.contracts.events.versions import RewardRecord
from shared.intervals import TWO_SIDED_99, difference

MOST_VOTES = 500
"""Newest fresh votes that count: an older one leaves as a newer one comes."""
SCORED_PER_LOOK = 64
ROLES = frozenset({"system", "user", "assistant"})
MAX_TURNS, MAX_CHARS = 256, 200_000
"""Longest conversation, and its characters with an answer, that the scorer is asked about."""

VotePlace = tuple[str, int]
"""Where a vote's pair is in the log: `<topic>/<partition>` and offset."""


@dataclass(frozen=True)
class KnownVerdicts:
    """With which fresh votes a reward model agrees, as it is kept over restarts."""

    reward_model: str = ""
    agreed: Mapping[VotePlace, bool] = field(default_factory=dict[VotePlace, bool])


@dataclass(frozen=True)
class FreshAgreement:
    """With how many fresh votes a reward model agrees."""

    reward_model: str = ""
    agreed: int = 0
    votes: int = 0

    @property
    def accuracy(self) -> float:
        """Share of the votes, of which there is one at least."""
        return self.agreed / self.votes

    def change(self, published: RewardRecord) -> tuple[float, float] | None:
        """99 % interval of the accuracy less the one that it was published with.

        Both are of samples. The interval is wide as it is looked at again with each new votes. None
        without votes, or where the record does not say of how many its accuracy is.
        """
        accuracy, tested = (published.metrics.get(name, 0.0) for name in ("accuracy", "tested"))
        if not self.votes or tested < 1 or "accuracy" not in published.metrics:
            return None
        return difference((self.agreed, self.votes), (accuracy * tested, tested), TWO_SIDED_99)


def fallen(agreement: FreshAgreement, published: RewardRecord, min_votes: int) -> str:
    """Why the newest reward model's accuracy has fallen beyond chance; empty where it has not.

    Args:
        agreement: Of the newest looks; of another reward model it says nothing.
        published: The newest reward model.
        min_votes: Fresh votes below which nothing is concluded.

    """
    if agreement.reward_model != published.name or agreement.votes < max(1, min_votes):
        return ""
    change = agreement.change(published)
    if change is None or change[1] >= 0:
        return ""
    return (
        f"{published.name} agrees with {agreement.agreed} of {agreement.votes} votes that came since, "
        f"{agreement.accuracy:.0%}, and agreed with {published.metrics['accuracy']:.0%} of "
        f"{published.metrics['tested']:.0f} when it was published: at least {-change[1]:.0%} less"
    )


def is_scorable(pair: PreferencePair) -> bool:
    """Whether the scorer can read a pair: text alone, not too long, and not of an erased person."""
    turns = [turn for turn in (pair.chosen_turn, pair.rejected_turn) if turn is not None]
    if pair.encrypted is not None or pair.tools or any(turn.tool_calls for turn in turns):
        return False
    if not 0 < len(pair.messages) <= MAX_TURNS:
        return False
    chars = sum(len(turn.content) for turn in pair.messages)
    return chars + max(len(pair.chosen), len(pair.rejected)) <= MAX_CHARS and all(
        turn.role in ROLES and not (turn.tool_calls or turn.parts) for turn in pair.messages
    )


class FreshVerdicts:
    """What the newest reward model said of each fresh vote; at most MOST_VOTES are known."""

    def __init__(self, before: KnownVerdicts = KnownVerdicts()) -> None:
        """`before`: of an earlier process; they count once it is known which of the votes stand."""
        self._before: KnownVerdicts | None = before
        self._reward_model = ""
        self._votes: Sequence[VotePlace] = ()
        self._agreed: dict[VotePlace, bool] = {}
        self._tries: Counter[VotePlace] = Counter()

    @property
    def known(self) -> KnownVerdicts:
        """What is to be kept over a restart."""
        return self._before or KnownVerdicts(self._reward_model, dict(self._agreed))

    def forget(self) -> None:
        """Know of no vote any more: their places are those of a topic that is gone."""
        self._before, self._votes = None, ()
        self._agreed.clear()
        self._tries.clear()

    @property
    def agreement(self) -> FreshAgreement:
        """Of the votes that were scored and still stand."""
        return FreshAgreement(self._reward_model, sum(self._agreed.values()), len(self._agreed))

    def renew(self, reward_model: str, votes: Sequence[VotePlace]) -> None:
        """Take the fresh votes that stand, newest first; what another reward model said is dropped."""
        if reward_model != self._reward_model:
            before = self._before
            same = before is not None and before.reward_model == reward_model
            self._reward_model, self._before = reward_model, None
            self._agreed = dict(before.agreed) if before and same else {}
            self._tries.clear()
        self._votes = votes[:MOST_VOTES]
        stand = frozenset(self._votes)
        self._agreed = {vote: said for vote, said in self._agreed.items() if vote in stand}
        self._tries = Counter({vote: count for vote, count in self._tries.items() if vote in stand})

    def due(self) -> list[VotePlace]:
        """Votes to score now: those tried least first, then the newest, so none keeps others back."""
        open_votes = (vote for vote in self._votes if vote not in self._agreed)
        return sorted(open_votes, key=lambda vote: self._tries[vote])[:SCORED_PER_LOOK]

    def put(self, vote: VotePlace, *, agreed: bool) -> None:
        """Note which answer the reward model prefers: the voter's or the other."""
        self._agreed[vote] = agreed

    def failed(self, votes: Collection[VotePlace]) -> None:
        """Note votes that were not scored."""
        self._tries.update(votes)
