"""`python -m services.training.rebuild <dataset_id>`: makes a snapshot again and compares bytes.

Reads the manifest, then the log up to the manifest's offsets under the manifest's rules. Exit
status 0 where every file and the manifest are the same, 1 where they differ, naming the files. Of
a dataset that an earlier release stored, the manifest is compared as this release writes it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection
from dataclasses import replace

from prometheus_client import CollectorRegistry

from services.training.dataset_manifest import Dataset, FilePlace
from services.training.dataset_store import DatasetStore, read_import
from services.training.import_check import checked_import
from services.training.settings import TrainingSettings
from services.training.snapshot import take_snapshot
from shared.contracts.events.preferences import ERASED
from shared.http.detector import detector_of
from shared.kafka.encrypted_log import decrypting
from shared.kafka.log import EventLog
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.redaction.detection import Redact, Redaction
from shared.redaction.redactor import Redactor

RULES = Redactor().text


async def rebuild(
    event_log: EventLog,
    stored: Dataset,
    roots: Collection[str],
    alive: Callable[[], None] = lambda: None,
    redact: Redact = RULES,
) -> Dataset:
    """The dataset made again from the log (and its import, where it had one).

    `alive` is that of `take_snapshot`; `redact` that of the service, as an import went through it.

    Raises:
        BadDataset: the import is gone, or nothing is left to train on.
        LogUnavailable: the log could not be read.

    """
    manifest = stored.manifest
    imported = None
    if manifest.origin == "import":
        imported = await asyncio.to_thread(read_import, manifest.source, roots)
        imported = await checked_import(imported, redact, alive)
    made = await take_snapshot(
        event_log,
        model=manifest.model,
        method=manifest.method,
        rules=manifest.rules,
        labelled=manifest.labelled,
        imported=imported,
        until=manifest.offsets,
        alive=alive,
    )
    # Which rows fit a base only its tokenizer can say, and the stored dataset says it already.
    left = [row for row in stored.left_out_rows() if row.file in made.files]
    made = made.without(row for row in left if row.reason != ERASED)
    if not manifest.erased_from:
        return made
    made = replace(made, manifest=made.manifest.under(manifest.dataset_id))
    return made.erase({FilePlace(row.file, row.line) for row in left if row.reason == ERASED})


def differences(stored: Dataset, made: Dataset) -> list[str]:
    """Names of the files whose bytes differ; `manifest.json` where that of this release does."""
    refs = made.files.refs
    names = [name for name, ref in stored.files.refs.items() if refs.get(name) != ref]
    if stored.manifest.encode() != made.manifest.encode():
        names.append("manifest.json")
    return names


async def main(dataset_id: str) -> int:
    """Compare one dataset; returns the exit status."""
    settings = TrainingSettings.load()
    store = DatasetStore(settings.datasets_uri)
    stored = await asyncio.to_thread(store.read, dataset_id)
    if stored is None:
        print(f"{dataset_id}: no such dataset under {store.root}", file=sys.stderr)
        return 1
    brokers = KafkaLog(
        KafkaConnection.of(settings), source="/ratchet/training", client_id="ratchet-rebuild"
    )
    log = decrypting(brokers, settings)
    detector = detector_of(settings, CollectorRegistry())
    try:
        made = await rebuild(
            log, stored, settings.readable_import_roots, redact=Redaction(detector)
        )
    finally:
        if detector is not None:
            await detector.close()
    wrong = differences(stored, made)
    print(f"{dataset_id}: {'differs in ' + ', '.join(wrong) if wrong else 'the same bytes'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m services.training.rebuild <dataset_id>", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(asyncio.run(main(sys.argv[1])))
