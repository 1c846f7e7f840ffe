"""The state machine of one rollout: (state, observation or command) -> move. Pure.

A move is a transition: the state that follows, and why. The controller writes it to the decision
log before it acts on it. Time comes in with the observation.
"""

# pyright: strict
from __future__ import annotations

from datetime import datetime, timedelta

from services.rollout import engine_loss, shadow
from services.rollout.errors import Conflict
from services.rollout.freeze import frozen_until
from services.rollout.shadow import ShadowTally
from services.rollout.state import CONTROLLER, Move, Observation, RolloutState, ended, hold
from services.rollout.strategy import Analysis, Pause, SetWeight, Shadow
from services.rollout.verdict import CriterionState
from shared.contracts.events.base import WEIGHT_SCALE
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase

LOAD_DEADLINE_S = 900.0
"""Seconds after which people are called to a candidate that is not ready for its first users."""
IDLE_FACTOR = 10.0
"""A candidate without a request for this many times the no-data limit counts as NoData."""


def look(state: RolloutState, seen: Observation) -> Move:
    """Move that follows from an observation; at least a hold with its reason.

    Order: what ends the rollout, then what stops it, then its steps.
    """
    state = state.but(updated_at=seen.at)
    before, state = state, engine_loss.observed(state, seen)
    if stopped := engine_loss.stop(before, state, seen):
        return stopped
    if refused := _refused(state, seen):
        state = state.but(outcome=AnalysisOutcome.failed)
        return ended(state, DecisionKind.rollback, f"AdapterRefused: {refused}")
    if seen.verdict is not None and seen.verdict.outcome is AnalysisOutcome.failed:
        state = state.but(outcome=AnalysisOutcome.failed)
        return ended(state, DecisionKind.rollback, seen.verdict.reason)
    state = _shadowed(state, seen)
    if broken := _shadow_broken(state):
        state = state.but(outcome=AnalysisOutcome.failed)
        return ended(state, DecisionKind.rollback, broken)
    outcome, reason = _outcome(state, seen, engine_loss.silent(before, seen.agents))
    state = state.but(outcome=outcome)
    if state.phase is Phase.paused:
        move = _paused(state, seen, reason)
    else:
        move = _walk(state, seen, reason)
    if move.kind is DecisionKind.hold and outcome is not before.outcome:
        return Move(move.kind, move.state, move.weight_before, move.reason)
    return move


def _refused(state: RolloutState, seen: Observation) -> str:
    """Why the candidate cannot be served, by the engines; empty where they do not say so.

    A person who starts a version on another base brings its engines next. A rollout that nobody
    asked for would wait for them for ever.
    """
    refused = [f"{url}: {one.refused}" for url, one in seen.agents.items() if one.refused]
    if not refused and state.asked_by == CONTROLLER:
        return seen.elsewhere
    return "; ".join(refused)


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
        return (
            AnalysisOutcome.no_data,
            f"no judged request of the candidate for {seen.idle_s:.0f} s{_capped(seen)}",
        )
    if seen.verdict is None:
        return AnalysisOutcome.no_data, "no evidence yet"
    if seen.breakers:
        return (
            AnalysisOutcome.inconclusive,
            f"the circuit breaker of router {', '.join(seen.breakers)} is open: it failed "
            "time after time there and gets no request",
        )
    if seen.withheld:
        return AnalysisOutcome.inconclusive, seen.withheld
    return seen.verdict.outcome, seen.verdict.reason


def _capped(seen: Observation) -> str:
    """What a person has to know where requests come and none of them counts."""
    if not seen.candidate.capped:
        return ""
    return (
        f"; {seen.candidate.capped:g} of its attempts were capped: they name no user and no session "
        "(RATCHET_ROUTER_NOBODY_VOTES_PER_MINUTE has some of them judged), or are beyond a limit"
    )


def _paused(state: RolloutState, seen: Observation, reason: str) -> Move:
    goes_on = engine_loss.resumes_by_itself(state)
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
    return hold(
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
            return _set_weight(state, seen, step, reason)
        if isinstance(step, Shadow):
            move = _shadow(state, seen, step)
            if move is not None:
                return move
            state = state.but(step=state.step + 1, step_started_at=seen.at, needs_person=False)
            continue
        if isinstance(step, Pause) and step.pause.duration is None:
            after = state.but(
                phase=Phase.paused, paused_by="gate", paused_at=seen.at, needs_person=True
            )
            return Move(DecisionKind.pause, after, state.weight, "waits for a person to let it on")
        waits_for = _waits_for(state, seen, step, reason)
        if waits_for:
            late = _late(state, seen, step)
            held = bool(seen.breakers) or (
                seen.verdict is not None
                and any(result.state is CriterionState.held for result in seen.verdict.results)
            )
            after = state.but(needs_person=late or held)
            if late:
                waits_for = f"the step's deadline is over, a person has to look: {waits_for}"
            urgent = first != state.step or after.needs_person != state.needs_person
            return hold(after, waits_for, urgent=urgent)
        state = state.but(step=state.step + 1, step_started_at=seen.at, needs_person=False)
    after = state.but(phase=Phase.healthy, weight=WEIGHT_SCALE, needs_person=False)
    return Move(DecisionKind.complete, after, state.weight, f"{state.candidate} passed every step")


def _shadowed(state: RolloutState, seen: Observation) -> RolloutState:
    """The state with the shadow answers that came in; what a lost engine cost is no answer."""
    if state.shadow is None or state.shadow_step is None:
        return state
    excluded = state.unjudged_until is not None and seen.at < state.unjudged_until
    judged = state.paused_by != "engine" and not excluded
    return state.but(shadow=state.shadow.counting(seen.shadow, judged=judged))


def _shadow_broken(state: RolloutState) -> str:
    step = state.shadow_step
    if state.shadow is None or step is None:
        return ""
    return state.shadow.broken(step.shadow, state.strategy.judge.alpha)


def _shadow(state: RolloutState, seen: Observation, step: Shadow) -> Move | None:
    """The shadow step's move; None where it is over."""
    elapsed_s = (seen.at - state.step_started_at).total_seconds()
    if state.shadow is None and not seen.not_served:
        after = state.but(
            shadow=ShadowTally(since=seen.at), step_started_at=seen.at, needs_person=False
        )
        return Move(DecisionKind.weight, after, state.weight, step.name)
    if state.shadow is None:
        waits_for, late = f"waits: {seen.not_served}", elapsed_s > LOAD_DEADLINE_S
    else:
        waits_for = shadow.waits_for(state.shadow, step.shadow, elapsed_s)
        late = _late(state, seen, step)
    if not waits_for:
        return None
    if late and state.shadow is not None:
        waits_for = f"the step's deadline is over, a person has to look: {waits_for}"
    return hold(state.but(needs_person=late), waits_for, urgent=late and not state.needs_person)


def _set_weight(state: RolloutState, seen: Observation, step: SetWeight, reason: str) -> Move:
    if state.weight == 0 and seen.not_ready:
        late = (seen.at - state.step_started_at).total_seconds() > LOAD_DEADLINE_S
        called = late or any(report.undecided for report in seen.agents.values())
        urgent = called and not state.needs_person
        return hold(state.but(needs_person=called), f"waits: {seen.not_ready}", urgent=urgent)
    # A person may end a step early, and the judge's word on this look still comes first.
    unjudged = _unjudged(state, seen, reason) if state.weight else ""
    if unjudged:
        late = (seen.at - state.step_started_at).total_seconds() > state.strategy.deadline
        urgent = late and not state.needs_person
        return hold(state.but(needs_person=late), f"{step.name} waits: {unjudged}", urgent=urgent)
    if end := frozen_until(state.strategy.freeze, seen.at):
        return hold(
            state.but(needs_person=False), f"{step.name} waits: frozen until {end:%F %R %Z}"
        )
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


def _unjudged(state: RolloutState, seen: Observation, reason: str) -> str:
    """Why the judge says nothing good of the present weight; empty where it does."""
    if state.outcome is not AnalysisOutcome.successful:
        return reason or "no evidence yet"
    if state.unjudged_until is not None and seen.at < state.unjudged_until:
        return f"judged again in {(state.unjudged_until - seen.at).total_seconds():.0f} s"
    # Invariant 3. A pause may be over before silence counts as NoData, and each weight restarts that.
    if state.weight_set_at is not None and seen.candidate_at <= state.weight_set_at.timestamp():
        return "no request of the candidate was counted since the weight was set"
    return ""


def _waits_for(state: RolloutState, seen: Observation, step: Pause | Analysis, reason: str) -> str:
    """What keeps a step from ending; empty where nothing does."""
    if unjudged := _unjudged(state, seen, reason):
        return unjudged
    if isinstance(step, Pause):
        if step.pause.until_proven and seen.proven:
            return ""
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


def _late(state: RolloutState, seen: Observation, step: Shadow | Pause | Analysis) -> bool:
    match step:
        case Shadow():
            deadline, duration = step.shadow.deadline, step.shadow.duration
        case Pause():
            deadline, duration = step.pause.deadline, step.pause.duration or 0.0
        case Analysis():
            deadline, duration = step.analysis.deadline, 0.0
    allowed = deadline if deadline is not None else duration + state.strategy.deadline
    return (seen.at - state.step_started_at).total_seconds() > allowed


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


def resume(
    state: RolloutState, at: datetime, reason: str, *, actor: str = "", approver: bool = True
) -> Move:
    """Go on where it stopped; a gate is passed, if its rules let this actor through.

    Raises:
        Conflict: it is not paused, or `actor` may not let it on.

    """
    _unfinished(state)
    if state.phase is not Phase.paused:
        raise Conflict(f"rollout {state.rollout_id} is not paused; nothing to resume")
    if state.paused_by == "gate":
        _pass_gates(state, actor, state.step + 1, approver=approver)
    after = _resumed(state, at).but(updated_at=at)
    if state.paused_by == "gate":
        after = after.but(step=state.step + 1, step_started_at=at)
    return Move(DecisionKind.resume, after, state.weight, reason or "resumed by a person")


def promote(
    state: RolloutState,
    at: datetime,
    reason: str,
    *,
    full: bool = False,
    actor: str = "",
    approver: bool = True,
) -> Move:
    """End the present step now; `full` makes the candidate stable at once.

    Raises:
        Conflict: it has ended, the candidate is not serving yet, or the actor may not let it
            through a gate on the way.

    """
    _unfinished(state)
    until = len(state.strategy.steps) if full else state.step + 1
    _pass_gates(state, actor, until, approver=approver)
    if state.weight == 0 and (full or state.mirrored == 0):
        raise Conflict(
            f"rollout {state.rollout_id}: the candidate serves no user yet; "
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
    return ended(state.but(updated_at=at), kind, reason or "aborted by a person")


def _pass_gates(state: RolloutState, actor: str, until: int, *, approver: bool) -> None:
    """Refuse an actor whom a gate up to a step does not let through."""
    gates = state.strategy.gates(state.step, until)
    if not approver and any(gate.approval for gate in gates):
        raise Conflict(
            f"rollout {state.rollout_id}: its gate needs an approval, and {actor} is no approver's "
            "key; one issued with `ratchet keys create --approver` has to let it on"
        )
    if actor and actor == state.asked_by and any(gate.four_eyes for gate in gates):
        raise Conflict(
            f"rollout {state.rollout_id}: its gate needs four eyes, and {actor} started it; "
            "another key with the scope operate has to let it on"
        )


def _unfinished(state: RolloutState) -> None:
    if state.phase.finished:
        raise Conflict(
            f"rollout {state.rollout_id} has ended ({state.phase.value}); "
            "retry it, or start one for another candidate"
        )
