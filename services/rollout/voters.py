"""Leave one voter out: no verdict rests on one tenant or API key alone. Pure.

Beside the judge of all traffic runs one for each voter that never saw it. Where two tenants or
more carry what a criterion counts (else two keys or more), a breach stands only if every one of
those judges finds it too; else it is a hold, and a person is called. That only takes verdicts back,
so alpha holds as it is. Where one key carries all, its traffic is the product, and the bounds on
what one user adds are what is left (design section 7).
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable

from services.rollout.counts import (
    NO_ARMS,
    NO_SLICE,
    ArmCounts,
    Arms,
    Counted,
    JudgeState,
    KeyTest,
    Slice,
    unchecked,
)
from services.rollout.criteria import STATISTIC
from shared.voters import KINDS, MAX_OWN, SHARED, shared_label

CARRIERS = 2
EARLIER_CARRIERS = 3
"""So many voters with at least CARRIES of what is counted carry it; earlier, of the attempts."""
CARRIES = 0.05
LAST_WITH_THREE_CARRIERS = 4
"""The last version of the judge's rule with EARLIER_CARRIERS."""
MAX_FOLLOWED = 2 * MAX_OWN + SHARED
"""Voters of a kind followed by their own label; several routers may each name others by it."""
NOBODY = ""
"""Stands for no voter among the judges that leave one out: a new voter's begins as this one is."""
MAX_VOTERS = len(KINDS) * (MAX_FOLLOWED + SHARED)
FIGURES = (
    "requests",
    "failures",
    "crashes",
    "slow",
    "streams",
    "stalls",
    "capped",
    "scores",
    "score_sum",
)
"""Figures of an arm that are known by voter."""
_NOTHING = ArmCounts().model_dump()


def voter_key(kind: str, label: str) -> str:
    """A voter's name in slices and in the judge's state."""
    return f"{kind}:{label}"


def left_out(
    before: JudgeState,
    after: JudgeState,
    piece: Slice,
    advance: Callable[[JudgeState, Slice, str], JudgeState],
) -> JudgeState:
    """`after` a slice, with each voter's totals and the state of its judge; they are of `before`.

    Slices whose voters come later wait, and are one slice to these judges: they take verdicts back
    and make none, so it is nothing to alpha when that one ends.
    """
    if not (before.without or piece.voters or piece.voters_later):
        return after  # Nobody is known by name.
    totals, without = dict(before.voters), dict(before.without)
    if NOBODY not in without:
        without[NOBODY] = _seed(before)
    apart = before.apart + piece
    if piece.voters_later:
        return after.but(voters=totals, without=without, apart=apart)
    parts = _followed(before, piece)
    for voter, arms in parts.items():
        totals[voter] = totals.get(voter, NO_ARMS) + arms
        if voter not in without:
            # Until now it had no part but under its shared label: a router may have restarted.
            without[voter] = before.without.get(_shared(voter), without[NOBODY])
    whole = piece.but(candidate=apart.candidate, stable=apart.stable, voters=parts)
    judges = {voter: advance(one, whole, voter) for voter, one in without.items()}
    return after.but(voters=totals, without=judges, apart=NO_ARMS)


def deciding_voters(
    state: JudgeState, counted: Counted, statistic: int = STATISTIC
) -> tuple[str, ...]:
    """The voters of whom no single one may decide, by what is counted; the largest first.

    Empty where fewer than two carry it: have a share of the attempts or, where scores are counted,
    of the scores. `statistic` is the version of the judge's rule.
    """
    carriers = CARRIERS
    if statistic <= LAST_WITH_THREE_CARRIERS:
        carriers, counted = EARLIER_CARRIERS, "requests"
    for kind in KINDS:
        mine = [voter for voter in state.voters if voter.startswith(f"{kind}:")]
        if sum(_carries(state, voter, {"requests", counted}) for voter in mine) >= carriers:
            return tuple(sorted(mine, key=lambda voter: -_both(state.voters[voter], counted)))
    return ()


def _carries(state: JudgeState, voter: str, counted: set[Counted]) -> bool:
    return any(
        _both(state.voters[voter], one) >= CARRIES * _both(state.totals, one) > 0 for one in counted
    )


def voter_shares(state: JudgeState) -> list[dict[str, str | float]]:
    """What each voter contributed, largest share of the candidate's attempts first."""
    whole = state.totals
    rows: list[dict[str, str | float]] = []
    for voter, arms in state.voters.items():
        kind, _, label = voter.partition(":")
        rows.append(
            {
                "by": kind,
                "voter": label,
                "candidate": _share(arms.candidate.requests, whole.candidate.requests),
                "stable": _share(arms.stable.requests, whole.stable.requests),
                "candidate_scores": _share(arms.candidate.scores, whole.candidate.scores),
                "stable_scores": _share(arms.stable.scores, whole.stable.scores),
                "capped": arms.candidate.capped + arms.stable.capped,
            }
        )
    return sorted(rows, key=lambda row: (str(row["by"]), -float(row["candidate"])))


def named(voter: str, state: JudgeState) -> str:
    """A voter in words, with its share of the candidate's attempts."""
    kind, _, label = voter.partition(":")
    part = state.voters[voter].candidate.requests
    share = _share(part, state.totals.candidate.requests)
    return f"{'tenant' if kind == 'tenant' else 'API key'} {label} ({share:.0%} of its attempts)"


def _followed(state: JudgeState, piece: Slice) -> dict[str, Arms]:
    """A slice's parts by followed voters; one without room counts under its shared label."""
    own = {voter for voter in state.voters if _shared(voter)}
    parts: dict[str, Arms] = {}
    for voter, arms in piece.voters.items():
        name, shared = voter, _shared(voter)
        if shared and voter not in own:
            kind = voter.partition(":")[0]
            if sum(one.startswith(f"{kind}:") for one in own) < MAX_FOLLOWED:
                own.add(voter)
            else:
                name = shared
        parts[name] = parts.get(name, NO_ARMS) + arms
    return parts


def _shared(voter: str) -> str:
    """The voter by whose label this one may be counted too; "" of a shared one and of nobody."""
    kind, _, label = voter.partition(":")
    shared = label and shared_label(label)
    return shared and voter_key(kind, shared)


def _seed(state: JudgeState) -> JudgeState:
    """The state without what is not known by voter."""
    whole_blocks = {key: block for key, block in state.blocks.items() if "/" not in key}
    return state.but(
        segments={}, keys=KeyTest(), blocks=whole_blocks, voters={}, without={}, apart=NO_ARMS
    )


def without_voter(piece: Slice, voter: str) -> Slice:
    """What a slice holds without one voter, and without the shared label that may hold it too."""
    parts = [piece.voters.get(one, NO_ARMS) for one in (voter, _shared(voter)) if one]
    return NO_SLICE.but(
        candidate=_less(piece.candidate, [part.candidate for part in parts]),
        stable=_less(piece.stable, [part.stable for part in parts]),
        weight=piece.weight,
        bake=piece.bake,
    )


def _less(whole: ArmCounts, parts: list[ArmCounts]) -> ArmCounts:
    mine, theirs = whole.__dict__, [part.__dict__ for part in parts]
    left = {name: max(0.0, mine[name] - sum([one[name] for one in theirs])) for name in FIGURES}
    return unchecked(ArmCounts, {**_NOTHING, **left})


def _both(arms: Arms, counted: Counted) -> float:
    return getattr(arms.candidate, counted) + getattr(arms.stable, counted)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
