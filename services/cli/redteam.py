"""`ratchet redteam`: ask a version what it must not do, and remember what it did."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.identity import OnBehalfOf, on_record
from services.cli.kafka import read_registry, with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.probes.asking import Asking, ask_all
from services.cli.probes.report import (
    MaxTokens,
    Out,
    ProbedVersion,
    check_answered,
    probes_of,
    publish_ran,
    share_within,
    write_report,
)
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from services.cli.settings import CliSettings
    from shared.kafka.log import EventLog
    from shared.probes.red_team import HitShare, Probe, ProbeFinding

SHOWN = 60
"""Characters of an answer that the table shows."""

app = typer.Typer(no_args_is_help=True, help="Ask a version what it must not do.")


@app.callback()
def redteam() -> None:
    """Keep `run` a command of its own."""


@app.command()
def run(
    version: ProbedVersion,
    *,
    probes: Annotated[
        Path | None, typer.Option(help="YAML list of probes; else the shipped ones.")
    ] = None,
    out: Out = None,
    max_tokens: MaxTokens = 256,
    remember: Annotated[
        bool,
        typer.Option("--remember/--no-remember", help="Make each hit a case of the gate."),
    ] = True,
    on_behalf_of: OnBehalfOf = "",
    reason: Annotated[str, typer.Option(help="Why; kept on record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask every probe plain and under each attack; exit 1 where one succeeds."""
    from shared.probes.red_team import SHIPPED, load_probes, shares

    settings = load_settings()
    findings = ask_probes(
        settings, Asking(version, max_tokens), probes_of(probes or SHIPPED, load_probes)
    )
    findings = asyncio.run(redacted_findings(settings, findings))
    hits = [one for one in findings if one.fault]
    tables = {by: shares(findings, by) for by in ("category", "attack")}
    report = as_report(version, findings, tables)
    digest = write_report(out, report)
    asked = on_record(settings, on_behalf_of, reason or f"red-team run of {len(findings)} prompts")
    said = f"{len(hits)} of {len(findings)} prompts succeeded; report {digest}"
    with_log(settings, lambda log: _record(log, version, hits if remember else [], asked, said))
    if as_json:
        print_json(report)
    else:
        _print(version, findings, tables)
    if hits:
        raise typer.Exit(Exit.failed)


def ask_probes(settings: CliSettings, asking: Asking, probes: list[Probe]) -> list[ProbeFinding]:
    """Every probe under every attack that fits it, judged.

    Raises:
        CliError: not one was answered.

    """
    from shared.probes.red_team import ProbeFinding

    asked = [(probe, attack) for probe in probes for attack in probe.attacks]
    answers = ask_all(settings, asking, [probe.turns(attack) for probe, attack in asked])
    check_answered(answers)
    return [
        ProbeFinding(probe, attack, failure=answer.failure)
        if answer.failure
        else ProbeFinding(probe, attack, answer.text, probe.fault(answer.text))
        for (probe, attack), answer in zip(asked, answers, strict=True)
    ]


async def redacted_findings(
    settings: CliSettings, findings: list[ProbeFinding]
) -> list[ProbeFinding]:
    """Findings with their answers redacted; what a detector could not check is a marker."""
    from prometheus_client import CollectorRegistry

    from shared.http.detector import detector_of
    from shared.redaction import Redaction, redacted

    detector = detector_of(settings.detector, CollectorRegistry())
    try:
        return await redacted(
            Redaction(detector),
            lambda redact: [replace(one, answer=redact(one.answer)) for one in findings],
        )
    finally:
        if detector is not None:
            await detector.close()


def as_report(
    version: str, findings: list[ProbeFinding], tables: dict[str, list[HitShare]]
) -> dict[str, Any]:
    """The whole run for a file: shares with intervals, and each answer, redacted."""
    return {
        "kind": "redteam",
        "version": version,
        "at": datetime.now(UTC).isoformat(),
        "prompts": len(findings),
        "hits": sum(bool(one.fault) for one in findings),
        "not_judged": sum(bool(one.failure) for one in findings),
        **{
            f"by_{by}": [
                {"name": one.name, "hits": one.hits, "judged": one.judged, "interval": one.interval}
                for one in found
            ]
            for by, found in tables.items()
        },
        "findings": [
            {
                "probe": one.probe.id,
                "attack": one.attack,
                "category": one.probe.category,
                "fault": one.fault,
                "failure": one.failure,
                "answer": one.answer,
            }
            for one in findings
        ],
    }


async def _record(
    log: EventLog, version: str, hits: list[ProbeFinding], asked: dict[str, str], said: str
) -> None:
    """Publish the run's record, and each hit as a failure case of the version's model."""
    from shared.contracts.events.base import Message
    from shared.contracts.events.cases import MAX_ANSWER, CaseFound
    from shared.contracts.topics import CASES
    from shared.probes.red_team import case_id

    model = await _model_of(log, version)
    for hit in hits:
        if not hit.answer:
            continue
        case = CaseFound(
            case_id=case_id(version, hit),
            model=model,
            version=version,
            messages=tuple(Message.model_validate(turn) for turn in hit.probe.turns(hit.attack)),
            good=hit.probe.wanted,
            bad=hit.answer[:MAX_ANSWER],
            probe=hit.name,
            at=datetime.now(UTC),
            **asked,
        )
        await log.publish(CASES, key=case.case_id, event=case, event_id=case.case_id)
    await publish_ran(log, "redteam.ran", version, asked, said)


async def _model_of(log: EventLog, version: str) -> str:
    found = (await read_registry(log)).get(version)
    if found is None:
        raise CliError(f"{version}: no such version; ratchet versions list has them", Exit.failed)
    return found.record.model


def _print(version: str, findings: list[ProbeFinding], tables: dict[str, list[HitShare]]) -> None:
    for by, found in tables.items():
        rows = [
            (one.name, one.judged, one.hits, share_within(one.hits, one.judged)) for one in found
        ]
        print_table(f"{version} by {by}", (by, "judged", "hits", "share [95 %]"), rows)
    hits = [
        (one.name, one.probe.category, one.fault, _short(one.answer))
        for one in findings
        if one.fault
    ]
    print_table("Hits", ("probe", "category", "what is wrong", "answer"), hits)
    failed = [(one.name, one.failure) for one in findings if one.failure]
    if failed:
        print_table("Not judged", ("probe", "why"), failed)


def _short(answer: str) -> str:
    text = " ".join(answer.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
