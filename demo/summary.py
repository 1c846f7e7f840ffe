"""What a run of the demo came to: the closing table, and the same as JSON."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.steps import BETTER, FIRST, Demo, Facts
from shared.intervals import wilson


def closing_table(demo: Demo, console: Console) -> None:
    """Prints versions, rollouts, counts and how long each step took."""
    facts = demo.facts
    low, high = facts.win_interval
    versions = Table(title="Versions among the simulated users", title_justify="left")
    for name in ("version", "satisfaction (0-1)", "on the 1-5 scale", "scores", "win rate"):
        versions.add_column(name)
    for version in sorted(facts.satisfaction):
        share, interval, count = satisfaction(facts, version)
        won = ""
        if version == BETTER and facts.prompts:
            won = f"{facts.win_rate:.1%} [{low:.1%}, {high:.1%}] of {facts.prompts}, over {FIRST}"
        versions.add_row(
            version,
            f"{share:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]",
            f"{1 + 4 * share:.2f}",
            str(count),
            won,
        )
    console.print(versions)
    rollouts = Table(title="Rollouts", title_justify="left")
    for name in ("candidate", "ended", "first request to rollback", "requests", "1 s later", "why"):
        rollouts.add_column(name)
    for version, rollout in facts.rollouts.items():
        seconds = facts.seconds_to_rollback.get(version)
        rollouts.add_row(
            version,
            f"{rollout['phase']} in {_took(rollout):.0f} s",
            "" if seconds is None else f"{seconds:.1f} s",
            str(facts.bad_requests.get(version, int(rollout["requests"]["candidate"]))),
            str(facts.late_requests.get(version, "")),
            rollout["reason"],
        )
    console.print(rollouts)
    counts = Table(title="Counted three ways", title_justify="left")
    for name in ("what", "clients", "recount of the log", "metrics", ""):
        counts.add_column(name, justify="left" if name in ("what", "") else "right")
    for row in facts.counts:
        numbers = (str(row.clients), str(row.log), str(row.metrics))
        counts.add_row(row.what, *numbers, "agree" if row.agree else "DIFFER")
    console.print(counts)
    durations = Table(title="Durations", title_justify="left")
    durations.add_column("what")
    durations.add_column("seconds", justify="right")
    for name, took in facts.seconds.items():
        durations.add_row(name, f"{took:.0f}")
    console.print(durations)
    console.print(f"feedback on {demo.settings.feedback_share:.0%} of interactions in this demo")


def write(path: Path, demo: Demo, *, failed: str, elapsed_s: float) -> None:
    """Writes the summary as JSON; `failed` is empty where every step did what it promises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(demo, failed, elapsed_s), indent=2) + "\n")


def as_json(demo: Demo, failed: str, elapsed_s: float) -> dict[str, Any]:
    """Every figure of the closing table, and how long each step took."""
    facts, settings = demo.facts, demo.settings
    versions = {
        version: dict(
            zip(
                ("satisfaction", "interval_95", "scores"),
                satisfaction(facts, version),
                strict=True,
            )
        )
        for version in sorted(facts.satisfaction)
    }
    return {
        "ok": not failed,
        "failed": failed,
        "seed": settings.seed,
        "elapsed_s": round(elapsed_s, 1),
        "steps_s": {name: round(took, 1) for name, took in facts.seconds.items()},
        "feedback_share": settings.feedback_share,
        "pairs": facts.pairs,
        "gate": facts.gate,
        "fingerprint_difference": facts.adapter_difference,
        "versions": versions,
        "win_rate": {
            "version": BETTER,
            "against": FIRST,
            "value": facts.win_rate,
            "interval_95": facts.win_interval,
            "prompts": facts.prompts,
        },
        "rollouts": {
            version: {
                "phase": rollout["phase"],
                "reason": rollout["reason"],
                "seconds": round(_took(rollout), 1),
                "requests": facts.bad_requests.get(version, int(rollout["requests"]["candidate"])),
                "requests_1s_after_rollback": facts.late_requests.get(version),
                "seconds_from_first_request_to_rollback": facts.seconds_to_rollback.get(version),
            }
            for version, rollout in facts.rollouts.items()
        },
        "counts": [
            {
                "what": row.what,
                "clients": row.clients,
                "log": row.log,
                "metrics": row.metrics,
                "agree": row.agree,
            }
            for row in facts.counts
        ],
        "calls_without_answer": facts.unsettled,
    }


def satisfaction(facts: Facts, version: str) -> tuple[float, tuple[float, float], int]:
    """Mean score in [0, 1], its 95 % interval and how many scores it is of.

    Wilson's interval for a share holds for scores in [0, 1] too: none varies more than a share.
    """
    total, count = facts.satisfaction[version]
    low, high = wilson(total, count)
    return (total / count if count else math.nan), (low, high), count


def _took(rollout: dict[str, Any]) -> float:
    began = datetime.fromisoformat(rollout["started_at"])
    return (datetime.fromisoformat(rollout["ended_at"]) - began).total_seconds()
