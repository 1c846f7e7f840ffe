"""`ratchet backup`: every topic into files, and back under the offsets that they had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.errors import CliError, Exit
from services.cli.kafka import run_with_kafka
from services.cli.output import AsJson, print_json
from services.cli.settings import load_settings

if TYPE_CHECKING:
    from services.cli.backup_files import BackupManifest

app = typer.Typer(no_args_is_help=True, help="Copy Kafka's topics, and bring them back.")

Folder = Annotated[Path, typer.Argument(help="Folder of the backup.")]


@app.command()
def take(folder: Folder, *, as_json: AsJson = False) -> None:
    """Copy all topics into a new folder, while the aggregator is stopped.

    Keys, values, headers, times and offsets are kept, and where consumer groups are. Texts of people
    are in it: keep it as you keep the brokers' disks.
    """
    from services.cli.backup_topics import take as take_topics
    from shared.kafka.security import KafkaConnection

    settings = load_settings()
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise CliError(f"{folder} is there already; name a new one", Exit.usage) from None
    connection = KafkaConnection.of(settings.kafka)
    _say(run_with_kafka(settings, lambda: take_topics(connection, folder)), as_json=as_json)


@app.command()
def restore(folder: Folder, *, as_json: AsJson = False) -> None:
    """Write a backup into empty topics (ratchet topics apply), before any service starts.

    Nothing is written where a file is damaged, or a topic is missing, not empty or has other
    partitions.
    """
    from services.cli.backup_files import load
    from services.cli.backup_topics import restore as restore_topics
    from shared.kafka.security import KafkaConnection

    settings = load_settings()
    manifest = load(folder)
    connection = KafkaConnection.of(settings.kafka)
    run_with_kafka(settings, lambda: restore_topics(connection, folder, manifest))
    _say(manifest, as_json=as_json)


def _say(manifest: BackupManifest, *, as_json: bool) -> None:
    records = {
        topic: sum(partition.records for partition in files.partitions)
        for topic, files in manifest.topics.items()
    }
    if as_json:
        print_json({"topics": records})
    else:
        typer.echo(f"{len(records)} topics, {sum(records.values())} records")
