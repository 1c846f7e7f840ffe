"""`ratchet keys`: issue and revoke API keys. Only the hash of a key is kept."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit
from services.cli.kafka import READ_TIMEOUT_S, with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.kafka.log import EventLog

app = typer.Typer(no_args_is_help=True, help="Issue, list and revoke API keys.")


@app.command()
def create(
    scope: Annotated[
        list[str], typer.Option("--scope", help="infer, feedback, vote, operate; repeatable.")
    ],
    *,
    tenant: Annotated[str, typer.Option()] = "default",
    explicit_versions: Annotated[
        bool, typer.Option("--explicit-versions", help="May name versions, as comparisons do.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Issue a key. It is shown once."""
    from datetime import UTC, datetime

    from pydantic import ValidationError

    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.contracts.topics import API_KEYS
    from shared.kafka.envelope import describe
    from shared.keys import hash_key, new_key

    key, key_id = new_key(), f"key-{secrets.token_hex(6)}"
    try:
        issued = ApiKeyIssued.model_validate(
            {
                "key_id": key_id,
                "sha256": hash_key(key),
                "tenant": tenant,
                "scopes": scope,
                "explicit_versions": explicit_versions,
                "issued_at": datetime.now(UTC),
            }
        )
    except ValidationError as error:
        raise CliError(describe(error), Exit.usage) from None
    with_log(
        load_settings(),
        lambda log: log.publish(API_KEYS, key=key_id, event=issued, event_id=key_id),
    )
    if as_json:
        print_json({"key_id": key_id, "key": key, "tenant": tenant, "scopes": scope})
    else:
        typer.echo(
            f"{key_id}: {key}\nIt is shown this once. Send it as: Authorization: Bearer <key>"
        )


@app.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """The keys that are valid now, without their secrets."""
    found = list(with_log(load_settings(), _issued).values())
    if as_json:
        print_json([key.model_dump(mode="json", exclude={"sha256"}) for key in found])
        return
    print_table(
        "API keys",
        ("key", "tenant", "scopes", "explicit versions", "issued"),
        [
            (
                key.key_id,
                key.tenant,
                ", ".join(key.scopes),
                key.explicit_versions,
                key.issued_at.isoformat(timespec="seconds"),
            )
            for key in found
        ],
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as ratchet keys list shows it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Revoke a key."""
    from shared.contracts.topics import API_KEYS

    async def work(log: EventLog) -> None:
        if key_id not in await _issued(log):
            raise CliError(f"there is no key {key_id}; see ratchet keys list", Exit.refused)
        await log.append(API_KEYS, key=key_id, value=None)

    with_log(load_settings(), work)
    if as_json:
        print_json({"revoked": key_id})
    else:
        typer.echo(f"{key_id} revoked")


async def _issued(log: EventLog) -> dict[str, ApiKeyIssued]:
    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.contracts.topics import API_KEYS
    from shared.kafka.log import read_to_end

    found: dict[str, ApiKeyIssued] = {}
    for record in await read_to_end(log, API_KEYS, timeout_s=READ_TIMEOUT_S):
        if record.value is None:
            found.pop(record.key, None)
        else:
            found[record.key] = ApiKeyIssued.model_validate_json(record.value)
    return found
