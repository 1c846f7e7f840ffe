"""What the judge says of seeded evidence, look by look, stays what it said before.

`verdicts.json` was written by the first statistic: records of that time replay to it still. After a change that means to alter it: `python -m tests.unit.rollout.test_judge_verdicts`, and read
the difference.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.judge import Judge
from services.rollout.strategy import JudgeSettings

KNOWN = Path(__file__).with_name("verdicts.json")
SEEDS = range(16)
LOOKS = 40


class Scenario:
    """Arms that fail, crash, are slow and are scored at random rates, then a bake without stable."""

    def __init__(self, seed: int, statistic: int) -> None:
        self._random = random.Random(seed)
        pick = self._random.choice
        settings = {
            "alpha": pick([0.01, 0.05]),
            "belowBaseline": self._random.random() < 0.8,
            "slowShare": pick([0.01, 0.1]),
            "consecutiveFailures": pick([5, 20]),
        }
        self.limits: tuple[float, ...] = pick([(0.05, 0.03, 0.02), (0.05,), ()])
        self.judge = Judge(JudgeSettings.model_validate(settings), self.limits, statistic)
        rates = [[0.01, 0.1, 0.5, 1.0], [0.001, 0.05, 0.4], [0, 0.02, 0.2], [0.2, 0.6, 0.7]]
        self._candidate = [pick(choices) for choices in rates]
        self._stable = [pick(choices) for choices in rates]
        self._weight = pick([500, 2_000, 5_000])
        self._off = pick([1, 1, 1.3])
        self._bakes_at = pick([10, 25, LOOKS])

    def pieces(self) -> list[Slice]:
        """One slice for each look."""
        return [self._piece(look) for look in range(LOOKS)]

    def _piece(self, look: int) -> Slice:
        bake = look >= self._bakes_at
        share = 1 if bake else self._weight / 10_000
        requests, keys = self._random.choice([0, 5, 40]), self._random.choice([0, 10, 40])
        weight = self._weight if look < LOOKS // 2 else min(5_000, self._weight * 2)
        return Slice(
            candidate=self._arm(
                int(requests * share + self._random.random()),
                self._candidate,
                keys=int(keys * self._weight / 10_000 * self._off + self._random.random()),
            ),
            stable=self._arm(
                int(requests * (1 - share)),
                self._stable,
                keys=int(keys * (1 - self._weight / 10_000)),
            ),
            keys_weight=0 if bake or self._random.random() < 0.2 else weight,
            keys_copies=self._random.choice([1, 2]),
            bake=bake,
        )

    def _arm(self, requests: int, rates: list[float], *, keys: int) -> ArmCounts:
        failing, slow, crashing, liked = rates
        failures, scores = self._of(requests, failing), self._of(requests, 0.3)
        total = sum(
            self._random.choice([0, 0.25, 0.5, 0.75, 1]) * self._of(1, min(1, liked * 1.5))
            for _ in range(scores)
        )
        torn = self._of(1, 0.05)  # the sum was scraped before the count
        return ArmCounts(
            requests=requests,
            failures=failures,
            crashes=min(failures, self._of(requests, crashing)),
            slow=self._of(requests, slow),
            scores=scores,
            score_sum=scores + 1 if torn else total,
            keys=keys,
        )

    def _of(self, count: int, share: float) -> int:
        return sum(self._random.random() < share for _ in range(count))


def verdicts(seed: int, statistic: int = 1) -> dict[str, Any]:
    """The outcome of each look at each error limit, and all that the last looks say."""
    scenario, state = Scenario(seed, statistic), JudgeState()
    limits = (*scenario.limits, None)
    outcomes = ""
    for piece in scenario.pieces():
        state = scenario.judge.advance(state, piece)
        for limit in limits:
            outcomes += scenario.judge.verdict(state, error_limit=limit).outcome.value[0]
    last = scenario.judge.verdict(state, error_limit=limits[0])
    return {
        "outcomes": outcomes,
        "reason": last.reason,
        "results": {
            one.criterion: [one.state.value, round(one.log_e, 3), round(one.threshold, 3), one.text]
            for one in last.results
        },
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_seeded_evidence_gets_the_verdicts_that_it_got_before(seed: int) -> None:
    known, now = json.loads(KNOWN.read_text())[seed], verdicts(seed)
    assert now["outcomes"] == known["outcomes"]
    assert now["reason"] == known["reason"]
    assert now["results"].keys() == known["results"].keys()
    for criterion, (state, log_e, threshold, text) in known["results"].items():
        assert now["results"][criterion] == [
            state,
            pytest.approx(log_e, abs=0.002),
            pytest.approx(threshold, abs=0.002),
            text,
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_second_statistic_weighs_means_and_limits_alike_against_other_thresholds(
    seed: int,
) -> None:
    first, second = verdicts(seed, 1)["results"], verdicts(seed, 2)["results"]
    for criterion in ("satisfaction", "slow", "crashes"):
        assert first[criterion][1] == second[criterion][1]
    assert second["errors"][2] < first["errors"][2]
    assert second["slow"][2] > first["slow"][2]


def test_the_known_verdicts_hold_every_criterion_and_outcome() -> None:
    known = json.loads(KNOWN.read_text())
    assert len({name for one in known for name in one["results"]}) >= 10
    assert {letter for one in known for letter in one["outcomes"]} == set("FIS")


if __name__ == "__main__":
    KNOWN.write_text(json.dumps([verdicts(seed) for seed in SEEDS], indent=1) + "\n")
