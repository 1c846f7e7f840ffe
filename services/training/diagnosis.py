"""Diagnosis of a refused candidate, for people: why, and what to do about it. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from services.training.adjustment import FORGOT, TOO_FAR, Space, Tried, hardly_moved, nearest
from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import GateCheck, GateResult

FEW_ROWS = 100
FEW_PROMPTS_SHARE = 0.3
NOISY_SHARE = 0.15
LEFT_OUT_SHARE = 0.1


def diagnose(
    gate: GateResult,
    figures: Mapping[str, float],
    *,
    method: TrainingMethod,
    card: Mapping[str, Mapping[str, int]],
    refused: Mapping[str, int],
    tried: Sequence[Tried],
    space: Space,
    gave_up: str = "",
) -> tuple[str, ...]:
    """Why no attempt was good enough, for people: failed checks, then what to do about them.

    Args:
        gate: Checks of the attempt that fell least short, or those that can be known before any.
        figures: What was measured.
        method: SFT is spoken of in demonstrations, the others in pairs.
        card: The dataset's counts.
        refused: Rows that were left out, by reason.
        tried: The attempts; none where nothing was trained.
        space: What the attempts might change.
        gave_up: Why one more attempt ended without a candidate.

    """
    attempts = len(tried)
    failed = [check for check in gate.checks if not check.passed]
    said = [f"not improved after {attempts} attempt{'s' if attempts != 1 else ''}"]
    if method is TrainingMethod.sft:
        said = [f"not good enough after {attempts} attempt{'s' if attempts != 1 else ''}"]
    if not attempts:
        said = ["not trained, as nothing could have passed the gate"]
    said += [_shown(check) for check in failed]
    names = {check.name for check in failed}
    said += _missing_data(names, lost=int(figures.get("not_finite", 0)))
    said += _data_problems(names, figures, refused, card.get("counts", {}))
    if attempts:
        said += _volume(method, card.get("counts", {}))
        said += _parameters(names, method, figures, rows=card.get("counts", {}).get("rows", 0))
    said += _attempts(tried, space)
    if gave_up:
        said += [f"attempt {attempts + 1} had no result: {gave_up}"]
    return tuple(said)


def _attempts(tried: Sequence[Tried], space: Space) -> Iterator[str]:
    """What was tried and how far each fell short, where there is something to compare."""
    if len(tried) < 2:
        return
    best = nearest(tried) + 1
    told = ", ".join(
        f"{number} by {one.chosen_by} "
        f"({' '.join(f'{name} {value:.3g}' for name, value in one.searched(space).items())}) "
        f"short by {one.shortfall:.2f}"
        for number, one in enumerate(tried, start=1)
    )
    yield f"attempts: {told}; the checks above are of attempt {best}, the nearest to passing"


def _shown(check: GateCheck) -> str:
    value = "no data" if check.value is None else f"{check.value:.3g}"
    return f"{check.name} {value} ({check.detail})"


def _missing_data(names: Collection[str], *, lost: int) -> Iterator[str]:
    if lost:
        yield (
            f"divergence: {lost} figure{'s were no finite numbers' if lost > 1 else ' was no finite number'}; "
            "lower learning_rate or max_grad_norm, the judge's (reward) too"
        )
    if "judge_data" in names:
        yield (
            "volume: collect more votes of more raters, or thumbs both up and down where there are "
            "none; a share of raters and prompts is set apart for the judge (judge_share of "
            "RATCHET_TRAINING_RULES, or votes with the judge's panel)"
        )
    if "heldout" in names:
        yield "volume: rows of more prompts are needed, or a higher heldout_share"
    if "prompts" in names and not lost:
        yield "volume: more prompts are needed, or a lower min_prompts or a higher heldout_share"


def _data_problems(
    names: Collection[str],
    figures: Mapping[str, float],
    refused: Mapping[str, int],
    counts: Mapping[str, int],
) -> Iterator[str]:
    if "judge" in names and "judge_accuracy_low" in figures:
        yield "pair quality: the judge and the raters do not agree; look at the raters' votes"
    if figures.get("win_rate_high", 1.0) < 0.5:
        yield "pair quality: the data teach what other raters dislike; look for inverted pairs"
    if "segments" in names:
        yield "fairness: add rows of the segment that loses, or leave out what the others teach it"
    if "safety" in names:
        yield "safety: add the failed probes' wanted answers, or leave out rows that teach the bad ones"
    rows, noisy = counts.get("rows", 0), refused.get("contradictory", 0)
    if rows and noisy / (rows + noisy) > NOISY_SHARE:
        yield f"pair quality: {noisy} contradictory pairs were left out"
    others = {reason: count for reason, count in refused.items() if reason != "contradictory"}
    lost = sum(others.values())
    if lost / max(rows + lost, 1) > LEFT_OUT_SHARE:
        reasons = ", ".join(f"{count} {reason}" for reason, count in others.items())
        yield (
            f"volume: {lost} of {rows + lost + noisy} rows were left out ({reasons}); ratchet dataset "
            "show names the rules, RATCHET_TRAINING_RULES sets them"
        )


def _volume(method: TrainingMethod, counts: Mapping[str, int]) -> Iterator[str]:
    what = "demonstrations" if method is TrainingMethod.sft else "pairs"
    rows, prompts = counts.get("rows", 0), counts.get("prompts", 0)
    if rows < FEW_ROWS:
        yield f"volume: {rows} {what}; {FEW_ROWS} or more are usual"
    if rows and prompts / rows < FEW_PROMPTS_SHARE:
        yield f"diversity: {prompts} prompts in {rows} {what}"


def _parameters(
    names: set[str], method: TrainingMethod, figures: Mapping[str, float], *, rows: int
) -> Iterator[str]:
    if figures.get("not_finite"):
        return
    if hardly_moved(names):
        moved = figures.get("distance_to_parent", figures.get("distance_to_base"))
        far = f" ({moved:.2g} nats)" if moved is not None else ""
        yield f"hyperparameters: training hardly moved the model{far}; raise learning_rate or epochs"
    elif method is TrainingMethod.sft and names == {"stop"}:
        yield (
            "hyperparameters: the model has not learnt to end its answers; raise epochs or "
            "learning_rate, and look whether demonstrations were cut"
        )
    elif method is TrainingMethod.sft and names & TOO_FAR:
        yield (
            "hyperparameters: held-out demonstrations became less likely; lower learning_rate or "
            "epochs, or give demonstrations of more prompts"
        )
    elif names & FORGOT:
        yield "forgetting: lower learning_rate or epochs, raise beta, or add rows of what was lost"
    elif names & TOO_FAR:
        yield "hyperparameters: lower learning_rate or epochs, or raise beta"
    elif (
        names == {"win_rate_low"} and {"prompts", "win_rate_low", "win_rate_high"} <= figures.keys()
    ):
        yield (
            f"volume: {figures['prompts']:.0f} held-out prompts leave the win rate between "
            f"{figures['win_rate_low']:.0%} and {figures['win_rate_high']:.0%}; rows of more prompts, or a "
            "higher heldout_share, narrow that"
        )
    elif names & {"win_rate", "win_rate_low"} and rows >= FEW_ROWS:
        yield (
            "hyperparameters or base model: the data did not move this model enough; raise "
            "learning_rate or epochs, or take a larger base"
        )
