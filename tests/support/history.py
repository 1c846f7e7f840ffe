"""History of rollouts, as a controller would have written it over a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from services.rollout.counts import ArmCounts, JudgeState, Slice
from services.rollout.judge import Judge
from services.rollout.state import RolloutState
from services.rollout.strategy_files import parse
from shared.contracts.events.base import Event
from shared.contracts.events.rollouts import Decision, DecisionKind, LeaderElected, Phase
from shared.contracts.topics import ROLLOUT_HOLDS, ROLLOUTS
from shared.kafka.envelope import encode
from shared.kafka.log import NewRecord

STRATEGY = parse(
    {
        "name": "history",
        "steps": [{"setWeight": 5}, {"analysis": {}}, {"setWeight": 100}, {"pause": {}}],
    }
)
WEIGHT = 500
BATCH = 500
HOLD_S = 4


@dataclass
class RolloutsHistory:
    """Rollouts of some models after each other, the last one of each unfinished.

    Each has `moves` decisions and `holds` signs of life. Evidence has the size of a real one's.
    """

    rollouts: int
    moves: int
    holds: int
    models: tuple[str, ...] = ("assistant",)
    began: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    last: Decision = field(init=False)

    def batches(self) -> Iterator[list[NewRecord]]:
        """Records to append, oldest first; the first one is an election at offset 0."""
        batch = [_record(ROLLOUTS, "one", LeaderElected(holder="one", at=self.began), "e")]
        for number, decision in enumerate(self._decisions()):
            self.last = decision
            topic = ROLLOUT_HOLDS if decision.reason == "holds" else ROLLOUTS
            batch.append(_record(topic, decision.rollout_id, decision, str(number)))
            if len(batch) == BATCH:
                yield batch
                batch = []
        yield batch

    def _decisions(self) -> Iterator[Decision]:
        seq, at = 0, self.began
        whole, slices = _evidence()
        every = max(1, self.holds // self.moves)
        for number, model in product(range(self.rollouts), self.models):
            unfinished = number == self.rollouts - 1
            for n in range(self.moves):
                ends = n == self.moves - 1 and not unfinished
                kind = DecisionKind.start if n == 0 else DecisionKind.weight
                kind = DecisionKind.complete if ends else kind
                yield self._decision(f"{model}-r{number}", seq, kind, at, whole)
                seq += 1
                for _ in range(every if not ends else 0):
                    at += timedelta(seconds=HOLD_S)
                    yield self._decision(f"{model}-r{number}", seq, DecisionKind.hold, at, slices)
                    seq += 1

    def _decision(
        self, rollout_id: str, seq: int, kind: DecisionKind, at: datetime, evidence: dict[str, Any]
    ) -> Decision:
        model, _, number = rollout_id.partition("-r")
        ended = kind is DecisionKind.complete
        state = RolloutState(
            rollout_id=rollout_id,
            model=model,
            stable=f"v{number}",
            candidate=f"v{int(number) + 1}",
            strategy=STRATEGY,
            phase=Phase.healthy if ended else Phase.progressing,
            weight=WEIGHT,
            started_at=self.began,
            step_started_at=self.began,
            updated_at=at,
        )
        return Decision(
            token=0,
            seq=seq,
            kind=kind,
            model=model,
            rollout_id=state.rollout_id,
            stable=state.candidate if ended else state.stable,
            candidate=state.candidate,
            phase=state.phase,
            weight=WEIGHT,
            actor="controller",
            reason="holds" if kind is DecisionKind.hold else "moves",
            evidence={**evidence, "state": state.model_dump(mode="json")},
            strategy=STRATEGY.to_dict() if kind is DecisionKind.start else None,
            at=at,
        )


def _evidence() -> tuple[dict[str, Any], dict[str, Any]]:
    """Evidence of a move, with the judge's state and findings, and that of a hold."""
    judge = Judge(STRATEGY.judge, STRATEGY.error_limits)
    arm = ArmCounts(requests=5.0, failures=1.0, slow=1.0, scores=1.0, score_sum=0.7)
    piece = Slice(candidate=arm, stable=arm, weight=WEIGHT)
    judged = judge.advance(JudgeState(), piece)
    slices = [{"look": n, **piece.model_dump(exclude_defaults=True)} for n in range(HOLD_S)]
    carried = {"sampled_until": 1.0, "candidate_at": 1.0, "slices": slices}
    verdict = judge.verdict(judged, error_limit=None)
    findings = [result.to_dict() for result in verdict.results]
    whole = {"judge": judged.model_dump(exclude_defaults=True), "findings": findings}
    return {**whole, **carried}, carried


def _record(topic: str, key: str, event: Event, event_id: str) -> NewRecord:
    headers = encode(event, source="/ratchet/rollout", event_id=event_id, time=datetime.now(UTC))
    return NewRecord(topic, key, event.to_json(), headers)
