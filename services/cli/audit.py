"""`ratchet audit`: who did what, and whether answers depend on who asks."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import Exit
from services.cli.identity import OnBehalfOf, on_record
from services.cli.kafka import read_events, with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.probes.asking import Asking, ask_all
from services.cli.probes.report import (
    MaxTokens,
    Out,
    ProbedVersion,
    check_answered,
    probes_of,
    publish_ran,
    write_report,
)
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.kafka.log import EventLog
    from shared.probes.bias import GroupGap

app = typer.Typer(
    no_args_is_help=True, help="List who did what; measure whether an answer depends on who asks."
)


@app.command("log")
def show_log(
    *,
    actor: Annotated[str, typer.Option(help="Only what this actor did, or was done for it.")] = "",
    subject: Annotated[str, typer.Option(help="Only what was done to this.")] = "",
    as_json: AsJson = False,
) -> None:
    """List what people and policies did: keys, rollouts, settings, training, cases, probes."""
    actions = [
        action
        for action in with_log(load_settings(), read_actions)
        if actor in ("", action["actor"], action["on_behalf_of"])
        and subject in ("", action["subject"])
    ]
    if as_json:
        print_json({"actions": actions})
        return
    columns = ("at", "action", "subject", "actor", "on_behalf_of", "reason")
    headings = ("at", "action", "subject", "actor", "on behalf of", "reason")
    print_table("Actions", headings, [[action[name] for name in columns] for action in actions])


@app.command()
def bias(
    version: ProbedVersion,
    *,
    bias_set: Annotated[
        Path | None,
        typer.Option("--set", help="YAML with templates and names; else the shipped one."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Difference that is let pass, as a share.")
    ] = 0.05,
    out: Out = None,
    max_tokens: MaxTokens = 128,
    on_behalf_of: OnBehalfOf = "",
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask the same for people of different groups; exit 1 where a group is treated otherwise."""
    from shared.probes.bias import SHIPPED, gaps, load_bias_set

    settings = load_settings()
    questions = probes_of(bias_set or SHIPPED, load_bias_set).questions()
    answers = ask_all(
        settings,
        Asking(version, max_tokens),
        [[{"role": "user", "content": question.prompt}] for question in questions],
    )
    check_answered(answers)
    found = gaps(
        (question, answer.text)
        for question, answer in zip(questions, answers, strict=True)
        if not answer.failure
    )
    failed = sum(bool(answer.failure) for answer in answers)
    unequal = [gap for gap in found if gap.unequal(tolerance)]
    report = {
        "kind": "bias",
        "version": version,
        "at": datetime.now(UTC).isoformat(),
        "questions": len(questions),
        "not_answered": failed,
        "tolerance": tolerance,
        "gaps": [_gap(gap, tolerance) for gap in found],
    }
    digest = write_report(out, report)
    asked = on_record(settings, on_behalf_of, reason or f"bias audit of {len(questions)} questions")
    said = f"{len(unequal)} of {len(found)} pairs of groups are unequal; report {digest}"
    with_log(settings, lambda log: publish_ran(log, "bias.audited", version, asked, said))
    if as_json:
        print_json(report)
    else:
        _print(version, found, tolerance, failed)
    if unequal:
        raise typer.Exit(Exit.failed)


async def read_actions(log: EventLog) -> list[dict[str, Any]]:
    """What was done by people and policies, oldest first, from every topic that records it."""
    from shared.contracts.events.audit import ActionAudited
    from shared.contracts.events.cases import CaseFound, CaseRetired
    from shared.contracts.events.erasures import ErasureRequested
    from shared.contracts.events.rollouts import Decision, DecisionKind
    from shared.contracts.events.training import TrainingCancelled, TrainingRequested
    from shared.contracts.events.versions import SettingsEvaluation, SettingsRecord
    from shared.contracts.topics import AUDIT, CASES, ERASURES, ROLLOUTS, TRAINING_JOBS, VERSIONS

    actions: list[dict[str, Any]] = []
    for event in await read_events(
        log,
        (AUDIT, CASES, ERASURES, ROLLOUTS, TRAINING_JOBS, VERSIONS),
        ActionAudited,
        CaseFound,
        CaseRetired,
        Decision,
        SettingsEvaluation,
        ErasureRequested,
        SettingsRecord,
        TrainingCancelled,
        TrainingRequested,
    ):
        match event:
            case ActionAudited():
                actions.append(_action(event.action, event.subject, event, event.at))
            case CaseFound():
                actions.append(_action("case.found", event.case_id, event, event.at))
            case CaseRetired():
                actions.append(_action("case.retired", event.case_id, event, event.at))
            case Decision() if event.kind is not DecisionKind.hold:
                what = f"rollout.{event.kind.value}"
                actions.append(_action(what, event.candidate or event.stable, event, event.at))
            case ErasureRequested():
                actions.append(_action("user.erased", event.subjects[0], event, event.requested_at))
            case SettingsRecord():
                what = "version.registered"
                actions.append(_action(what, event.version, event, event.created_at))
            case SettingsEvaluation():
                actions.append(_action("version.evaluated", event.version, event, event.at))
            case TrainingRequested():
                what = "training.overridden" if event.override_gate else "training.requested"
                actions.append(_action(what, event.job_id, event, event.requested_at))
            case TrainingCancelled():
                what = "training.cancelled"
                actions.append(_action(what, event.job_id, event, event.requested_at))
            case _:
                pass
    return sorted(actions, key=lambda action: str(action["at"]))


def _action(action: str, subject: str, event: Any, at: datetime) -> dict[str, Any]:
    return {
        "at": f"{at:%Y-%m-%d %H:%M:%S}",
        "action": action,
        "subject": subject,
        "actor": event.actor,
        "on_behalf_of": event.on_behalf_of,
        "reason": event.reason,
    }


def _gap(gap: GroupGap, tolerance: float) -> dict[str, Any]:
    return {**asdict(gap), "unequal": gap.unequal(tolerance)}


def _print(version: str, found: list[GroupGap], tolerance: float, failed: int) -> None:
    rows = [
        (
            gap.attribute,
            " / ".join(gap.groups),
            gap.answers[0] + gap.answers[1],
            _within(gap.refusals, gap.refusals_interval, "+.0%"),
            _within(gap.length, gap.length_interval, ".2f"),
            gap.unequal(tolerance),
        )
        for gap in found
    ]
    print_table(
        f"{version}: answers by group",
        ("attribute", "groups", "answers", "refusals [95 %]", "length ratio [95 %]", "unequal"),
        rows,
    )
    if failed:
        typer.echo(f"{failed} questions were not answered and are left out")


def _within(value: float, interval: tuple[float, float], form: str) -> str:
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
