"""A rollout as a terminal shows it: fields, the judge's findings, shadow answers, voters."""

from __future__ import annotations

import math
from typing import Any

from services.cli.output import percent, print_fields, print_json, print_table


def shadow_fields(shadow: dict[str, Any]) -> dict[str, Any]:
    """The shadow step in an operator's words: what is asked, what came, how it differs."""
    answers = shadow.get("answers") or {}
    differences = answers.get("differences") or {}
    asked = {"share of requests": percent(shadow.get("share") or 0)}
    came = {name: answers.get(name, 0) for name in ("answered", "failed", "expired")}
    return {
        **asked,
        **came,
        "minimum": shadow.get("minimum"),
        "coverage": f"{answers.get('coverage', 0):.0%}",
        **{name.replace("_", " "): f"{value:.2f}" for name, value in differences.items()},
    }


def show_rollout(data: Any, *, as_json: bool) -> None:
    """Print what the rollout service says of one rollout."""
    if as_json:
        print_json(data)
        return
    rollout = dict(data or {})
    findings = rollout.pop("findings", None) or []
    if "weight" in rollout:
        rollout["weight"] = percent(rollout["weight"])
    shadow = rollout.pop("shadow", None)
    voters = rollout.pop("voters", None) or []
    print_fields("Rollout", rollout)
    if shadow:
        print_fields("Shadow answers", shadow_fields(shadow))
    if findings:
        print_table(
            "What the judge sees",
            ("criterion", "state", "candidate", "stable", "of", "of stable", "odds", "says"),
            [
                (
                    finding.get("criterion"),
                    finding.get("state"),
                    finding.get("candidate"),
                    finding.get("stable"),
                    finding.get("candidate_n"),
                    finding.get("stable_n"),
                    odds(finding),
                    finding.get("text"),
                )
                for finding in findings
            ],
        )
    if voters:
        print_table(
            "Who is judged by: shares of each tenant and API key, hashed",
            ("by", "voter", "candidate", "stable", "scores", "of stable", "capped"),
            [_voter(one) for one in voters],
        )


def _voter(one: dict[str, Any]) -> tuple[Any, ...]:
    shares = ("candidate", "stable", "candidate_scores", "stable_scores")
    return (
        one.get("by"),
        one.get("voter"),
        *(f"{one.get(name, 0):.0%}" for name in shares),
        f"{one.get('capped', 0):g}",
    )


def odds(finding: dict[str, Any]) -> str | None:
    """Evidence against the candidate as odds, and those that decide; None for a hard stop."""
    log_e, threshold = finding.get("log_e") or 0.0, finding.get("threshold") or 0.0
    return f"{math.exp(min(log_e, 99)):.3g} of {math.exp(threshold):.0f}" if threshold else None
