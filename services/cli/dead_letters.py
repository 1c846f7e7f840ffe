"""`ratchet dead-letters`: list unreadable records and replay them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.identity import Why, requester, who
from services.cli.kafka import with_log
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from shared.contracts.events.dead_letters import DeadLetter
    from shared.kafka.deadletters import Replays
    from shared.kafka.log import EventLog

app = typer.Typer(no_args_is_help=True, help="Look at dead letters, and replay them.")

Topic = Annotated[str, typer.Option(help="Only those that came from this topic.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, oldest first.")]
MAX_DETAIL = 200


@app.command("list")
def list_letters(*, topic: Topic = "", limit: Limit = 100, as_json: AsJson = False) -> None:
    """List what could not be read, with the reason."""
    from shared.kafka.deadletters import Replays, list_dead_letters

    replays = Replays()
    letters = with_log(
        load_settings(),
        lambda log: list_dead_letters(log, source_topic=topic, limit=limit, replays=replays),
    )
    if as_json:
        print_json([letter.model_dump(mode="json") | replays.shown(letter) for letter in letters])
        return
    print_table(
        "Dead letters",
        ("at", "topic", "place", "reason", "detail", "service", "replayed"),
        [
            (
                letter.at.isoformat(timespec="seconds"),
                letter.source_topic,
                f"{letter.source_partition}/{letter.source_offset}",
                letter.reason,
                letter.detail[:MAX_DETAIL],
                letter.service,
                _replayed(replays, letter),
            )
            for letter in letters
        ],
    )


def _replayed(replays: Replays, letter: DeadLetter) -> str:
    at, again = replays.of(letter)
    if at is None:
        return ""
    return at.isoformat(timespec="seconds") + (", unreadable again" if again else "")


@app.command()
def replay(
    *, topic: Topic = "", limit: Limit = 100, reason: Why = "", as_json: AsJson = False
) -> None:
    """Hand dead letters back to the topics they came from; what counted already counts once."""
    from shared.kafka.deadletters import list_dead_letters, replay_on_record

    settings = load_settings()
    asked = requester(settings, who(), reason)

    async def work(log: EventLog) -> tuple[int, int]:
        found = await list_dead_letters(log, source_topic=topic, limit=sys.maxsize)
        whole = [one for one in found if one.body]
        return await replay_on_record(log, whole[:limit], asked), len(whole)

    count, of = with_log(settings, work)
    if as_json:
        print_json({"replayed": count, "of": of})
        return
    rest = f", the oldest; --limit {of} replays all" if count < of else ""
    typer.echo(f"{count} of {of} replayed{rest}")
    typer.echo("what is unreadable again raises ratchet_dead_letters_total, and no letter more")
