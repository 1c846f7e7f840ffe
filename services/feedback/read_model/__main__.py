"""The folding process: `python -m services.feedback.read_model`, started by the feedback service."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import sys
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import structlog
import uvloop

from services.feedback.read_model.folding import FoldingReport, ReadModelFolder
from services.feedback.read_model.schema import OtherFormat, database_path, delete_database
from services.feedback.read_model.store import LogReplaced, ReadModelStore
from services.feedback.settings import FeedbackSettings
from shared.clock import SystemClock
from shared.contracts.topics import EXAMPLES, FEEDBACK, PREFERENCES
from shared.kafka.encrypted_log import decrypting
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.observability.logging import configure_logging

log = structlog.get_logger(__name__)

LOCK_TRIES = 100
LOCK_PAUSE_S = 0.2


async def run(settings: FeedbackSettings, path: Path) -> None:
    """Fold until killed: the process holds nothing that the file does not."""
    brokers = KafkaLog(
        KafkaConnection.of(settings), source="/ratchet/feedback", client_id="ratchet-read-model"
    )
    event_log = decrypting(brokers, settings)
    store = ReadModelStore(path, max_bytes=settings.read_model_max_mb * 1_000_000)
    tail = event_log.tail(FEEDBACK, EXAMPLES, PREFERENCES, positions=store.positions())
    folder = ReadModelFolder(
        store,
        tail,
        SystemClock(),
        keep=timedelta(days=settings.read_model_days),
        report=_report,
    )
    try:
        await folder.run()
    finally:
        store.close()


def _report(report: FoldingReport) -> None:
    """Report to the service; without it this process ends (BrokenPipeError)."""
    sys.stdout.write(report.model_dump_json() + "\n")
    sys.stdout.flush()


async def _locked(path: Path) -> TextIO:
    """The lock that keeps a second process off the file, a predecessor's too that still ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock").open("w")
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(LOCK_PAUSE_S)
        else:
            return lock
    raise SystemExit(f"{path}: another process folds into it")


async def fold_for_ever(settings: FeedbackSettings) -> None:
    """Fold; where the file is of no use any more, delete it and fold the log from its beginning."""
    path = database_path(settings.data_dir)
    lock = await _locked(path)
    with lock:
        while True:
            try:
                await run(settings, path)
            except sqlite3.OperationalError:
                raise  # cannot be opened: no folder, no room; the service starts this process again
            except (LogReplaced, OtherFormat, sqlite3.DatabaseError) as error:
                log.warning("read_model.rebuilt", reason=type(error).__name__, error=str(error))
                delete_database(path)


def main() -> None:
    settings = FeedbackSettings.load()
    configure_logging("feedback", settings.log_level)
    os.nice(5)  # ingestion goes first where cores are short
    try:
        uvloop.run(fold_for_ever(settings))
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
