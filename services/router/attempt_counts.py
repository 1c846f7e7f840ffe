"""Counts of attempts and answers: metrics, votes, circuit breaker, and what an answer did."""

from __future__ import annotations

from services.router.call import Call, EngineAttempt
from services.router.candidate_breaker import CandidateBreaker
from services.router.language import CHARACTERS
from services.router.metrics import RouterMetrics
from services.router.passed_through import PASSED_THROUGH
from services.router.votes import CAPPED, JUDGED_ARMS, VoteLimits, vote_figures
from shared.contracts.events.interactions import Outcome


class AttemptCounts:
    """Counts each attempt once, and each answer once its event is kept."""

    def __init__(
        self, metrics: RouterMetrics, votes: VoteLimits, breaker: CandidateBreaker
    ) -> None:
        self._metrics = metrics
        self._votes = votes
        self._breaker = breaker

    def attempt(self, call: Call, attempt: EngineAttempt) -> None:
        """Count an attempt that has ended."""
        attempt.counted = True
        choice = call.choice
        attempt.counted_arm = self._votes.arm(call, attempt)
        self._metrics.attempt(
            (
                choice.model,
                attempt.version,
                attempt.counted_arm,
                choice.rollout,
                "" if attempt.counted_arm == CAPPED else call.segment,
            ),
            attempt.outcome,
            attempt.waited_s,
            duration_s=attempt.duration_s,
            slow_after_s=call.slow_after_s,
        )
        if choice.rollout and attempt.arm in JUDGED_ARMS:
            self._metrics.voters.add(
                (choice.model, attempt.version, attempt.arm, choice.rollout),
                tenant=call.tenant,
                key=call.key_id,
                figures=vote_figures(call, attempt, capped=attempt.counted_arm == CAPPED),
            )
        self._breaker.note(choice.rollout, attempt.arm, attempt.outcome)
        if attempt.first_token_at:
            path = self._metrics.path(
                (choice.model, attempt.version, attempt.counted_arm, choice.rollout)
            )
            path.first_token.observe(attempt.first_token_at - attempt.started)
            if call.max_gap_s is not None:
                path.gap.observe(call.max_gap_s)

    def answer(self, call: Call) -> None:
        """Count what has ended and is not counted yet: attempts, and what a kept answer did."""
        for attempt in call.attempts:
            if attempt.duration_s and not attempt.counted:
                self.attempt(call, attempt)
        if not call.recorded or call.counted:
            return
        call.counted = True
        last = call.last
        path = self._metrics.path(
            (call.choice.model, last.version, last.counted_arm, call.choice.rollout)
        )
        path.overhead.observe(call.overhead_s)
        if last.outcome is Outcome.ok and call.request.endpoint not in PASSED_THROUGH:
            # Languages are compared between arms alone.
            asked = call.request.asked if call.choice.rollout else ""
            self._metrics.behaviours.add(path.answered, call.answer, asked[:CHARACTERS])
