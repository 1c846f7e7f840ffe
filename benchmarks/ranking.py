"""Ranking of 20 versions by 50,000 votes: its time, and known strengths found again.

    python -m benchmarks.ranking

Votes follow known strengths; one in ten is a tie, and each rater has a taste of their own. Then 5 %
of the raters collude: all of their votes prefer the weakest version, over any other or, aimed, over
the first three. One process, so one core.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Sequence
from statistics import correlation

from shared.ranking.audit import audit
from shared.ranking.board import Outcome, RankedVote
from shared.ranking.standings import VersionRanking, rank

VERSIONS, VOTES, RATERS, BOOTSTRAPS = 20, 50_000, 500, 1_000
TIES, TASTE, SPREAD = 0.1, 0.2, 0.6
"""Share of ties; standard deviations in logits of a rater's taste and of the strengths."""
GOAL_S, GOAL_CORRELATION, COLLUDING = 10.0, 0.95, 0.05


def name(index: int) -> str:
    """The version of a strength."""
    return f"v{index:02}"


def known_strengths(count: int, seed: int = 3) -> list[float]:
    """Strengths in logits."""
    rng = random.Random(seed)
    return [rng.gauss(0, SPREAD) for _ in range(count)]


def crowd(
    strengths: Sequence[float],
    votes: int,
    *,
    seed: int = 1,
    ties: float = TIES,
    position: float = 0.0,
    length: float = 0.0,
    wordy: int = 1,
    raters: int = 0,
    taste: float = 0.0,
) -> list[RankedVote]:
    """Votes of people who follow the model.

    Args:
        strengths: of versions, in logits.
        votes: how many.
        seed: the same votes for the same seed.
        ties: share of ties.
        position: advantage of the left side, in logits.
        length: advantage of twice the length, in logits; with it, answers have lengths.
        wordy: how many times as long the last version writes.
        raters: who vote; none are named where it is 0.
        taste: standard deviation of what each rater adds to each strength, in logits.

    """
    rng = random.Random(seed)
    tastes = [[rng.gauss(0, taste) for _ in strengths] for _ in range(raters)]
    found: list[RankedVote] = []
    for _ in range(votes):
        i, j = rng.sample(range(len(strengths)), 2)
        margin = strengths[i] - strengths[j] + position
        rater = rng.randrange(raters) if raters else None
        if rater is not None:
            margin += tastes[rater][i] - tastes[rater][j]
        lengths = [
            rng.randint(50, 800) * (wordy if one == len(strengths) - 1 else 1) if length else 0
            for one in (i, j)
        ]
        margin += length * math.log2((lengths[0] + 1) / (lengths[1] + 1))
        outcome: Outcome = "right"
        if rng.random() < ties:
            outcome = "tie"
        elif rng.random() < 1 / (1 + math.exp(-margin)):
            outcome = "left"
        voter = "" if rater is None else f"r{rater}"
        found.append(RankedVote(name(i), name(j), outcome, *lengths, rater=voter))
    return found


def colluders(
    victims: Sequence[int], favourite: int, votes: int, raters: int, *, seed: int = 5
) -> list[RankedVote]:
    """Votes of raters who prefer a version over some others whatever the answers say."""
    rng = random.Random(seed)
    found: list[RankedVote] = []
    for _ in range(votes):
        other, rater = rng.choice(victims), f"bought{rng.randrange(raters)}"
        on_the_left = rng.random() < 0.5
        left, right = (favourite, other) if on_the_left else (other, favourite)
        outcome: Outcome = "left" if on_the_left else "right"
        found.append(RankedVote(name(left), name(right), outcome, rater=rater))
    return found


def rank_correlation(found: VersionRanking, strengths: Sequence[float]) -> float:
    """Spearman's, of ratings with known strengths."""
    ratings = {one.version: one.rating for one in found.standings}
    measured = [ratings[name(index)] for index in range(len(strengths))]
    return correlation(_ranks(measured), _ranks(strengths))


def first_three(found: VersionRanking) -> list[str]:
    """The versions on the first three places."""
    return [one.version for one in found.standings[:3]]


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(values)
    return [order.index(value) for value in values]


def main() -> int:
    """Print the figures; 1 where one misses its goal."""
    strengths = known_strengths(VERSIONS)
    votes = crowd(strengths, VOTES, raters=RATERS, taste=TASTE)
    began, cpu = time.perf_counter(), time.process_time()
    found = rank(votes, bootstraps=BOOTSTRAPS)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    related = rank_correlation(found, strengths)
    print(f"{len(found.standings)} versions, {found.votes} votes of {found.raters} raters")
    print(
        f"{BOOTSTRAPS} bootstraps by raters: {took:.1f} s, {cpu:.1f} s of CPU (goal {GOAL_S:.0f})"
    )
    print(f"rank correlation with known strengths: {related:.3f} (goal {GOAL_CORRELATION})")

    order = sorted(range(VERSIONS), key=lambda index: -strengths[index])
    top, last = order[:3], order[-1]
    bought, honest = int(COLLUDING * VOTES), votes[: int((1 - COLLUDING) * VOTES)]
    stay: dict[str, bool] = {}
    for what, victims in (("any other", order[:-1]), ("the first three", top)):
        raters = int(COLLUDING * RATERS)
        cast = [*honest, *colluders(victims, last, bought, raters)]
        attacked = rank(cast, bootstraps=0)
        stay[what] = first_three(attacked) == [name(index) for index in top]
        marks = ", ".join(one.check for one in audit(cast) if one.check != "order_unresolved")
        print(
            f"{COLLUDING:.0%} of raters and votes for the weakest over {what}: the first three "
            + ("stay" if stay[what] else f"are {', '.join(first_three(attacked))}")
            + f"; the audit marks {marks or 'nothing'}"
        )
    met = took <= GOAL_S and related >= GOAL_CORRELATION and stay["any other"]
    print("goals met" if met else "a goal is missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
