"""The state machine of one rollout: (state, observation or command) -> move. Pure.

A move is a decision to be: the state that follows, and why. The controller writes it before it
acts. Time comes in with the observation.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.rollout.counts import ArmCounts
from services.rollout.errors import Conflict
from services.rollout.strategy import Analysis, Pause, SetWeight, Strategy
from services.rollout.verdict import CriterionState, Verdict
from shared.contracts.events import WEIGHT_SCALE
from shared.registry.rollouts import AnalysisOutcome, DecisionKind, Phase
from shared.registry.versions import Lifecycle

LOAD_DEADLINE_S = 900.0
"""Seconds after which people are called to a candidate that is not ready for its first users."""
IDLE_FACTOR = 10.0
"""A candidate without a request for this many times the no-data limit counts as NoData."""
MAX_LOSSES = 2
"""Engine losses with the candidate loaded that fail a rollout."""
AGENT_SILENT_S = 15.0
"""Seconds after which an agent that does not answer has everybody put on stable, like a loss."""
LOSS_SHADOW_S = 15.0
"""Seconds after a loss whose samples are judged no more than those before: three scrapes of 5 s."""


class EngineMark(BaseModel):
    """What is known of one engine: how often it was started, and whether it is up."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    generation: int
    up: bool = True
    loaded: bool = Field(default=False, description="it had the candidate when last seen")
    silent_since: AwareDatetime | None = Field(
        default=None, description="the first look since its last answer"
    )


class RolloutState(BaseModel):
    """Where a rollout is. Each decision carries it whole, so the last one is enough to go on."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    rollout_id: str
    model: str
    stable: str
    candidate: str
    came_from: Lifecycle = Field(
        default=Lifecycle.registered, description="the candidate's state before the rollout"
    )
    strategy: Strategy = Field(exclude=True)
    phase: Phase = Phase.progressing
    step: int = 0
    weight: int = 0
    weight_set_at: AwareDatetime | None = None
    started_at: AwareDatetime
    step_started_at: AwareDatetime
    updated_at: AwareDatetime
    stage_requests: float = Field(default=0.0, description="candidate's when the weight was set")
    stage_scores: float = 0.0
    paused_by: Literal["", "person", "gate", "engine"] = ""
    paused_at: AwareDatetime | None = None
    losses: int = 0
    engines: dict[str, EngineMark] = Field(default_factory=dict)
    unjudged_until: AwareDatetime | None = Field(
        default=None, description="samples up to here are not judged, because of a lost engine"
    )
    outcome: AnalysisOutcome | None = None
    needs_person: bool = False

    def but(self, **changes: object) -> RolloutState:
        """The same with some fields changed."""
        return self.model_copy(update=changes)

    @property
    def step_name(self) -> str:
        """The present step in an operator's words."""
        steps = self.strategy.steps
        return steps[self.step].name if self.step < len(steps) else "done"

    @property
    def error_limit(self) -> float | None:
        """The error limit in force."""
        return self.strategy.error_limit(min(self.step, len(self.strategy.steps) - 1))


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What one adapter agent said.

    `ready` is None where it could not be asked. `refused` says why the adapter is not the
    registered one; `undecided` means that a person has to say whether it may serve.
    """

    ready: bool | None
    generation: int = 0
    candidate_ready: bool = False
    refused: str = ""
    undecided: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """All that one look gave.

    `waits` says why evidence that would fail the candidate is not judged yet; empty without any.
    """

    at: datetime
    agents: dict[str, EngineReport] = field(default_factory=dict)
    zeros_missing: str = "no router was scraped yet"
    verdict: Verdict | None = None
    error: str = ""
    waits: str = ""
    silent_s: float = 0.0
    idle_s: float = 0.0
    no_data_after_s: float = 30.0
    candidate: ArmCounts = field(default_factory=ArmCounts)

    @property
    def not_ready(self) -> str:
        """What the first weight above 0 still waits for; empty where nothing."""
        if not self.agents:
            return "no adapter agent is configured"
        for url, report in sorted(self.agents.items()):
            if report.ready is None:
                return f"agent {url} does not answer: {report.detail}"
            if not report.ready:
                return f"the engine of {url} is not ready"
            if not report.candidate_ready:
                return f"{url} does not serve the candidate yet: {report.detail or 'unknown to it'}"
        return self.zeros_missing or (f"evidence: {self.error}" if self.error else "")


@dataclass(frozen=True, slots=True)
class Move:
    """A decision to be. `urgent` ones are written at once, others as the next sign of life."""

    kind: DecisionKind
    state: RolloutState
    weight_before: int
    reason: str
    urgent: bool = True


def look(state: RolloutState, seen: Observation) -> Move:
    """What follows from an observation; at least a hold that says why.

    Order: what ends the rollout, then what stops it, then its steps.
    """
    state = state.but(updated_at=seen.at)
    before, mute = state, silent(state, seen.agents)
    state = state.but(engines=_marks(state.engines, seen.agents, seen.at))
    if state.weight == 0 and state.unjudged_until is not None:
        state = state.but(unjudged_until=max(state.unjudged_until, seen.at))
    if lost(before, seen.agents, seen.at):
        return _engine_lost(state, seen, _went(before.engines, seen.agents), mute)
    refused = [f"{url}: {one.refused}" for url, one in seen.agents.items() if one.refused]
    if refused:
        state = state.but(outcome=AnalysisOutcome.failed)
        return _ended(state, DecisionKind.rollback, f"AdapterRefused: {'; '.join(refused)}")
    if seen.verdict is not None and seen.verdict.outcome is AnalysisOutcome.failed:
        state = state.but(outcome=AnalysisOutcome.failed)
        return _ended(state, DecisionKind.rollback, seen.verdict.reason)
    outcome, reason = _outcome(state, seen, mute)
    state = state.but(outcome=outcome)
    if state.phase is Phase.paused:
        move = _paused(state, seen, reason)
    else:
        move = _walk(state, seen, reason)
    if move.kind is DecisionKind.hold and outcome is not before.outcome:
        return Move(move.kind, move.state, move.weight_before, move.reason)
    return move


def _outcome(
    state: RolloutState, seen: Observation, mute: list[str]
) -> tuple[AnalysisOutcome | None, str]:
    """The outcome of this look, before the steps' own conditions. No data never decides."""
    if state.weight == 0:
        return None, ""
    if seen.error:
        return AnalysisOutcome.error, seen.error
    if mute:
        return AnalysisOutcome.no_data, f"no answer of {', '.join(mute)}; the evidence waits for it"
    if seen.silent_s > seen.no_data_after_s:
        return AnalysisOutcome.no_data, f"no new sample for {seen.silent_s:.0f} s"
    if seen.idle_s > IDLE_FACTOR * seen.no_data_after_s:
        return AnalysisOutcome.no_data, f"no request of the candidate for {seen.idle_s:.0f} s"
    if seen.verdict is None:
        return AnalysisOutcome.no_data, "no evidence yet"
    if seen.waits:
        return AnalysisOutcome.inconclusive, seen.waits
    return seen.verdict.outcome, seen.verdict.reason


def lost(state: RolloutState, reports: Mapping[str, EngineReport], at: datetime) -> bool:
    """Whether everybody has to be put on stable, as an engine with the candidate is gone.

    That an agent is silent for AGENT_SILENT_S seconds is enough.
    """
    since = (state.engines[url].silent_since for url in silent(state, reports))
    overdue = any(one and (at - one).total_seconds() >= AGENT_SILENT_S for one in since)
    return overdue or bool(_went(state.engines, reports))


def silent(state: RolloutState, reports: Mapping[str, EngineReport]) -> list[str]:
    """Agents that do not answer while users are on the candidate that their engine had loaded."""
    return [
        url
        for url, report in sorted(reports.items())
        if state.weight > 0
        and report.ready is None
        and url in state.engines
        and state.engines[url].up
        and state.engines[url].loaded
    ]


def _went(marks: Mapping[str, EngineMark], reports: Mapping[str, EngineReport]) -> list[str]:
    """Agents that say themselves that the engine which had the candidate is gone."""
    return [
        url
        for url, report in reports.items()
        if report.ready is not None
        and (mark := marks.get(url)) is not None
        and mark.up
        and mark.loaded
        and (not report.ready or report.generation != mark.generation)
    ]


def _marks(
    marks: Mapping[str, EngineMark], reports: Mapping[str, EngineReport], at: datetime
) -> dict[str, EngineMark]:
    """What is known of each engine after a look. A silent agent's is what it was."""
    updated = dict(marks)
    for url, report in reports.items():
        if report.ready is not None:
            updated[url] = EngineMark(
                generation=report.generation, up=report.ready, loaded=report.candidate_ready
            )
        elif url in marks and marks[url].silent_since is None:
            updated[url] = marks[url].model_copy(update={"silent_since": at})
    return updated


def _engine_lost(state: RolloutState, seen: Observation, gone: list[str], mute: list[str]) -> Move:
    """Weight 0 at once. One engine serves both arms, so only a second loss is held against it.

    Silence takes the weight too, but is no loss: no data never decides. What the agent says when
    it answers again tells whether its engine was lost.
    """
    losses = state.losses + bool(gone)
    if losses >= MAX_LOSSES:
        state = state.but(losses=losses, outcome=AnalysisOutcome.failed)
        return _ended(
            state,
            DecisionKind.rollback,
            f"EngineLost: {', '.join(sorted(gone))} was lost again with the candidate loaded",
        )
    by_person = state.phase is Phase.paused and state.paused_by == "person"
    waits = state.strategy.engine_lost == "wait"
    after = state.but(
        phase=Phase.paused,
        paused_by="person" if by_person else "engine",
        paused_at=state.paused_at or seen.at,
        weight=0,
        weight_set_at=seen.at,
        step=state.strategy.weight_step(min(state.step, len(state.strategy.steps) - 1)),
        losses=losses,
        unjudged_until=seen.at + timedelta(seconds=LOSS_SHADOW_S),
        outcome=AnalysisOutcome.inconclusive,
        needs_person=waits,
    )
    engines = (
        ", ".join(sorted(gone))
        if gone
        else f"{', '.join(mute)} did not answer for {AGENT_SILENT_S:g} s"
    )
    follows = "a person has to resume" if waits else "goes on once the candidate is served again"
    return Move(
        DecisionKind.pause,
        after,
        state.weight,
        f"EngineLost: {engines}; everybody is on stable; {follows}",
    )


def _paused(state: RolloutState, seen: Observation, reason: str) -> Move:
    goes_on = state.paused_by == "engine" and state.strategy.engine_lost == "resume"
    if goes_on and not seen.not_ready:
        return Move(
            DecisionKind.resume,
            _resumed(state, seen.at).but(outcome=None),
            state.weight,
            "the candidate is served again after EngineLost",
        )
    waits_for = {
        "person": "paused by a person",
        "gate": "waits for a person to let it on",
        "engine": f"EngineLost: {seen.not_ready or 'a person has to resume'}",
    }[state.paused_by or "person"]
    away_s = (seen.at - (state.paused_at or seen.at)).total_seconds()
    called = state.needs_person or (goes_on and away_s > LOAD_DEADLINE_S)
    return _hold(
        state.but(needs_person=called),
        f"{waits_for}; {reason}" if reason else waits_for,
        urgent=called and not state.needs_person,
    )


def _walk(state: RolloutState, seen: Observation, reason: str) -> Move:
    """Go through the steps as far as their conditions are met."""
    first = state.step
    steps = state.strategy.steps
    while state.step < len(steps):
        step = steps[state.step]
        if isinstance(step, SetWeight):
            return _set_weight(state, seen, step)
        if isinstance(step, Pause) and step.pause.duration is None:
            after = state.but(
                phase=Phase.paused, paused_by="gate", paused_at=seen.at, needs_person=True
            )
            return Move(DecisionKind.pause, after, state.weight, "waits for a person to let it on")
        waits_for = _waits_for(state, seen, step, reason)
        if waits_for:
            late = _late(state, seen, step)
            held = seen.verdict is not None and any(
                result.state is CriterionState.held for result in seen.verdict.results
            )
            after = state.but(needs_person=late or held)
            if late:
                waits_for = f"the step's deadline is over, a person has to look: {waits_for}"
            urgent = first != state.step or after.needs_person != state.needs_person
            return _hold(after, waits_for, urgent=urgent)
        state = state.but(step=state.step + 1, step_started_at=seen.at, needs_person=False)
    after = state.but(phase=Phase.healthy, weight=WEIGHT_SCALE, needs_person=False)
    return Move(DecisionKind.complete, after, state.weight, f"{state.candidate} passed every step")


def _set_weight(state: RolloutState, seen: Observation, step: SetWeight) -> Move:
    if state.weight == 0 and seen.not_ready:
        late = (seen.at - state.step_started_at).total_seconds() > LOAD_DEADLINE_S
        called = late or any(report.undecided for report in seen.agents.values())
        urgent = called and not state.needs_person
        return _hold(state.but(needs_person=called), f"waits: {seen.not_ready}", urgent=urgent)
    after = state.but(
        weight=step.set_weight,
        weight_set_at=seen.at,
        step=state.step + 1,
        step_started_at=seen.at,
        stage_requests=seen.candidate.requests,
        stage_scores=seen.candidate.scores,
        needs_person=False,
    )
    return Move(DecisionKind.weight, after, state.weight, step.name)


def _waits_for(state: RolloutState, seen: Observation, step: Pause | Analysis, reason: str) -> str:
    """What keeps a step from ending; empty where nothing does."""
    if state.outcome is not AnalysisOutcome.successful:
        return reason or "no evidence yet"
    if state.unjudged_until is not None and seen.at < state.unjudged_until:
        return f"judged again in {(state.unjudged_until - seen.at).total_seconds():.0f} s"
    if isinstance(step, Pause):
        elapsed = (seen.at - state.step_started_at).total_seconds()
        duration = step.pause.duration or 0.0
        return f"{duration - elapsed:.0f} s left" if elapsed < duration else ""
    minimum = step.analysis.minimum
    requests = seen.candidate.requests - state.stage_requests
    scores = seen.candidate.scores - state.stage_scores
    if requests < minimum.requests:
        return f"{requests:g} of {minimum.requests} requests of the candidate are in"
    if scores < minimum.feedback:
        return f"{scores:g} of {minimum.feedback} scored feedback of the candidate are in"
    return ""


def _late(state: RolloutState, seen: Observation, step: Pause | Analysis) -> bool:
    if isinstance(step, Pause):
        deadline = step.pause.deadline
        allowed = (
            deadline
            if deadline is not None
            else (step.pause.duration or 0.0) + state.strategy.deadline
        )
    else:
        deadline = step.analysis.deadline
        allowed = deadline if deadline is not None else state.strategy.deadline
    return (seen.at - state.step_started_at).total_seconds() > allowed


def _hold(state: RolloutState, reason: str, *, urgent: bool = False) -> Move:
    return Move(DecisionKind.hold, state, state.weight, reason, urgent=urgent)


def _ended(state: RolloutState, kind: DecisionKind, reason: str) -> Move:
    """Degraded: everybody back on stable."""
    after = state.but(phase=Phase.degraded, weight=0, needs_person=False)
    return Move(kind, after, state.weight, reason)


def _resumed(state: RolloutState, at: datetime) -> RolloutState:
    """Progressing again; the time of the pause does not count for the step."""
    away = at - state.paused_at if state.paused_at is not None else timedelta(0)
    return state.but(
        phase=Phase.progressing,
        paused_by="",
        paused_at=None,
        step_started_at=state.step_started_at + away,
        needs_person=False,
    )


def pause(state: RolloutState, at: datetime, reason: str) -> Move:
    """Stop where it is: the weight stays and the judge looks on.

    Raises:
        Conflict: it is not progressing.

    """
    _unfinished(state)
    if state.phase is Phase.paused:
        raise Conflict(f"rollout {state.rollout_id} is paused already; resume or abort it")
    after = state.but(phase=Phase.paused, paused_by="person", paused_at=at, updated_at=at)
    return Move(DecisionKind.pause, after, state.weight, reason or "paused by a person")


def resume(state: RolloutState, at: datetime, reason: str) -> Move:
    """Go on where it stopped; a gate is passed.

    Raises:
        Conflict: it is not paused.

    """
    _unfinished(state)
    if state.phase is not Phase.paused:
        raise Conflict(f"rollout {state.rollout_id} is not paused; nothing to resume")
    after = _resumed(state, at).but(updated_at=at)
    if state.paused_by == "gate":
        after = after.but(step=state.step + 1, step_started_at=at)
    return Move(DecisionKind.resume, after, state.weight, reason or "resumed by a person")


def promote(state: RolloutState, at: datetime, reason: str, *, full: bool = False) -> Move:
    """End the present step now; `full` makes the candidate stable at once.

    Raises:
        Conflict: it has ended, or the candidate is not serving yet.

    """
    _unfinished(state)
    if state.weight == 0:
        raise Conflict(
            f"rollout {state.rollout_id}: the candidate serves nobody yet; "
            "wait for its first weight, or resume the rollout"
        )
    if full:
        after = state.but(
            phase=Phase.healthy,
            weight=WEIGHT_SCALE,
            paused_by="",
            paused_at=None,
            needs_person=False,
            updated_at=at,
        )
        return Move(
            DecisionKind.complete, after, state.weight, reason or "promoted in full by a person"
        )
    after = state.but(
        phase=Phase.progressing,
        paused_by="",
        paused_at=None,
        step=state.step + 1,
        step_started_at=at,
        needs_person=False,
        updated_at=at,
    )
    return Move(
        DecisionKind.promote, after, state.weight, reason or f"{state.step_name} ended by a person"
    )


def abort(
    state: RolloutState, at: datetime, reason: str, kind: DecisionKind = DecisionKind.abort
) -> Move:
    """End it: everybody back on stable.

    Raises:
        Conflict: it has ended already.

    """
    _unfinished(state)
    return _ended(state.but(updated_at=at), kind, reason or "aborted by a person")


def _unfinished(state: RolloutState) -> None:
    if state.phase.finished:
        raise Conflict(
            f"rollout {state.rollout_id} has ended ({state.phase.value}); "
            "retry it, or start one for another candidate"
        )
