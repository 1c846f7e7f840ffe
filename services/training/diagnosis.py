"""Diagnosis of a refused candidate: adjusted hyperparameters for a retry, or the reason."""

# pyright: strict
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import GateCheck, GateResult
from shared.contracts.recipes import SftHyperparameters, TrainerHyperparameters

NO_DATA = frozenset({"judge_data", "judge", "prompts", "heldout"})
TOO_FAR = frozenset(
    {"perplexity", "stop", "length_low", "length_high", "repetition", "kl", "kl_first", "ai_judge"}
)
FORGOT = frozenset({"cases", "capability", "capability_task"})
MAX_BETA = 2.0
MAX_EPOCHS = 10.0
MAX_LEARNING_RATE = 5e-3
FEW_ROWS = 100
FEW_PROMPTS_SHARE = 0.3
NOISY_SHARE = 0.15
LEFT_OUT_SHARE = 0.1


def adjust(
    parameters: TrainerHyperparameters, gate: GateResult, figures: Mapping[str, float]
) -> TrainerHyperparameters | None:
    """Parameters worth another try, or None where none would help.

    Hardly moved, or not better though near the parent: a higher rate and more epochs. Too far from
    the parent, or something forgotten: half the rate, fewer epochs, a higher beta. SFT that does not
    end its answers has learnt too little. Worse beyond doubt, or nothing to judge by: no parameter
    cures that.
    """
    failed = {check.name for check in gate.checks if not check.passed}
    if not failed or failed & NO_DATA:
        return None
    if _hardly_moved(failed):
        return _bolder(parameters)
    if isinstance(parameters, SftHyperparameters) and failed == {"stop"}:
        return _bolder(parameters)
    if failed & (TOO_FAR | FORGOT):
        return _gentler(parameters)
    if isinstance(parameters, SftHyperparameters):
        return None
    if figures.get("win_rate_high", 1.0) < 0.5:
        return None
    return _bolder(parameters)


def _hardly_moved(failed: Collection[str]) -> bool:
    """Whether the candidate is too near to base or parent to be told apart from it."""
    return "distinct" in failed


def _bolder(parameters: TrainerHyperparameters) -> TrainerHyperparameters:
    return parameters.model_copy(
        update={
            "learning_rate": min(parameters.learning_rate * 1.5, MAX_LEARNING_RATE),
            "epochs": min(parameters.epochs * 1.5, MAX_EPOCHS),
        }
    )


def _gentler(parameters: TrainerHyperparameters) -> TrainerHyperparameters:
    update: dict[str, float] = {
        "learning_rate": parameters.learning_rate / 2,
        "epochs": max(1.0, parameters.epochs * 2 / 3),
    }
    beta: float | None = getattr(parameters, "beta", None)
    if beta is not None:
        update["beta"] = min(max(beta, 0.01) * 1.5, MAX_BETA)
    return parameters.model_copy(update=update)


def diagnose(
    gate: GateResult,
    figures: Mapping[str, float],
    *,
    method: TrainingMethod,
    card: Mapping[str, Mapping[str, int]],
    refused: Mapping[str, int],
    attempts: int,
) -> tuple[str, ...]:
    """Why no attempt was good enough, for people: failed checks, then what to do about them.

    Args:
        gate: The last attempt's checks, or those that can be known before any.
        figures: What was measured.
        method: SFT is spoken of in demonstrations, the others in pairs.
        card: The dataset's counts.
        refused: Rows that were left out, by reason.
        attempts: How many were made; 0 where nothing was trained.

    """
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
    return tuple(said)


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
    if _hardly_moved(names):
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
