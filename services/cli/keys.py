"""`ratchet keys`: issue, rotate and revoke API keys. Only the hash of a key is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.identity import requester
from services.cli.kafka import READ_TIMEOUT_S, with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from datetime import datetime

    from shared.contracts.events.audit import ActionAudited
    from shared.kafka.log import EventLog
    from shared.registry.api_keys import NewKey

app = typer.Typer(no_args_is_help=True, help="Issue, list, rotate and revoke API keys.")

Reason = Annotated[str, typer.Option(help="Why; kept on record.")]
Days = Annotated[float, typer.Option("--days", min=0, help="Days until it expires; 0: never.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, as ratchet keys list shows it.")]


@app.command()
def create(
    scope: Annotated[
        list[str], typer.Option("--scope", help="infer, feedback, vote, operate; repeatable.")
    ],
    *,
    tenant: Annotated[str, typer.Option(help="The tenant whose key this is.")] = "default",
    name: Annotated[str, typer.Option(help="What uses it, for people.")] = "",
    days: Days = 0,
    explicit_versions: Annotated[
        bool, typer.Option("--explicit-versions", help="May name versions, as comparisons do.")
    ] = False,
    judge_panel: Annotated[
        bool, typer.Option("--judge-panel", help="May vote for the evaluation judge's panel.")
    ] = False,
    own_trace_ids: Annotated[
        bool, typer.Option("--own-trace-ids", help="May name its requests by x-ratchet-trace-id.")
    ] = False,
    approver: Annotated[
        bool,
        typer.Option("--approver", help="May let rollouts through gates that ask for approval."),
    ] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Requests a minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Tokens a minute, prompts and answers.")
    ] = None,
    feedback_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Pieces of feedback a minute.")
    ] = None,
    running: Annotated[int | None, typer.Option(min=0, help="Requests at a time.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens of one answer.")] = None,
    max_choices: Annotated[
        int | None, typer.Option(min=0, help="Answers of one request: n and best_of.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Issue a key. It is shown once. A bound left out is the services' own, 0 is none."""
    fields: dict[str, Any] = {
        "tenant": tenant,
        "scopes": scope,
        "name": name,
        "explicit_versions": explicit_versions,
        "judge_panel": judge_panel,
        "own_trace_ids": own_trace_ids,
        "approver": approver,
        "expires_at": _in_days(days),
        "limits": {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "feedback_per_minute": feedback_per_minute,
            "running": running,
            "max_tokens": max_tokens,
            "max_choices": max_choices,
        },
    }
    from shared.registry.api_keys import issue_key

    new, settings = _make(fields), load_settings()
    with_log(settings, lambda log: issue_key(log, new, requester(settings, "", reason)))
    _show_new(new, as_json=as_json)


@app.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """List the keys that are valid now, without their secrets."""
    from shared.registry.api_keys import read_keys

    now = _now()
    found = [
        key
        for key in with_log(load_settings(), read_keys).values()
        if key.expires_at is None or key.expires_at > now
    ]
    if as_json:
        print_json([key.model_dump(mode="json", exclude={"sha256"}) for key in found])
        return
    print_table(
        "API keys",
        ("key", "name", "tenant", "scopes", "explicit versions", "issued", "expires"),
        [
            (
                key.key_id,
                key.name,
                key.tenant,
                ", ".join(key.scopes),
                key.explicit_versions,
                key.issued_at.isoformat(timespec="seconds"),
                key.expires_at.isoformat(timespec="seconds") if key.expires_at else "never",
            )
            for key in found
        ],
    )


@app.command()
def rotate(
    key_id: KeyId,
    *,
    overlap_hours: Annotated[
        float, typer.Option(min=0, help="Hours that the old key stays valid.")
    ] = 24,
    days: Days = 0,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Issue a key like this one, and let this one expire."""
    from shared.registry.api_keys import known_key, rotate_key

    settings = load_settings()

    async def work(log: EventLog) -> NewKey:
        old = await known_key(log, key_id)
        return await rotate_key(
            log,
            old,
            requester(settings, "", reason),
            now=_now(),
            old_expires_at=_in_days(overlap_hours / 24) or _now(),
            expires_at=_in_days(days),
        )

    _show_new(with_log(settings, work), as_json=as_json)


@app.command()
def revoke(key_id: KeyId, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Revoke a key."""
    from shared.registry.api_keys import revoke_key

    settings = load_settings()
    asked = requester(settings, "", reason)
    with_log(settings, lambda log: revoke_key(log, key_id, asked, now=_now()))
    if as_json:
        print_json({"revoked": key_id})
    else:
        typer.echo(f"{key_id} revoked")


@app.command()
def audit(*, as_json: AsJson = False) -> None:
    """List who issued, rotated and revoked keys, oldest first."""
    found = with_log(load_settings(), _audited)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        "Audit of API keys",
        ("at", "action", "key", "tenant", "actor", "reason"),
        [
            (
                one.at.isoformat(timespec="seconds"),
                one.action,
                one.subject,
                one.tenant,
                one.actor,
                one.reason,
            )
            for one in found
        ],
    )


def _make(fields: dict[str, Any]) -> NewKey:
    from pydantic import ValidationError

    from shared.kafka.envelope import describe
    from shared.registry.api_keys import make_key

    try:
        return make_key(fields, _now())
    except ValidationError as error:
        raise CliError(describe(error), Exit.usage) from None


async def _audited(log: EventLog) -> list[ActionAudited]:
    from shared.contracts.events.audit import ActionAudited
    from shared.contracts.topics import AUDIT
    from shared.kafka.log import read_to_end

    records = await read_to_end(log, AUDIT, timeout_s=READ_TIMEOUT_S)
    return [ActionAudited.model_validate_json(one.value) for one in records if one.value]


def _show_new(new: NewKey, *, as_json: bool) -> None:
    issued = new.issued
    if as_json:
        shown = issued.model_dump(mode="json", include={"key_id", "tenant", "scopes", "expires_at"})
        print_json(shown | {"key": new.secret})
    else:
        typer.echo(
            f"{issued.key_id}: {new.secret}\nIt is shown this once. "
            "Send it as: Authorization: Bearer <key>"
        )


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _in_days(days: float) -> datetime | None:
    from datetime import timedelta

    return _now() + timedelta(days=days) if days else None
