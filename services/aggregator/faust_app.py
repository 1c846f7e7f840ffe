"""Faust application: the consumer group, the table and its changelog, without any of Faust's web."""

# pyright: basic, reportMissingTypeStubs=false
# faust has no useful types.
from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faust
from aiokafka.errors import IllegalStateError
from faust.types import TP

from services.aggregator.codec import MODELS
from services.aggregator.errors import DataDirUnusable
from services.aggregator.offset_gaps import ReadPlace
from services.aggregator.source_consumer import Fetched, SourceConsumer
from shared.contracts.topics import AGGREGATOR_CHANGELOG
from shared.kafka.security import KafkaConnection

HEARTBEAT_S = 2.0
REBALANCE_S = 60.0
"""How long a rebalance waits for its members; longer than the session lease that covers a hand-over."""
NO_GENERATION = -1
"""What aiokafka's coordinator holds while the group does not know it."""


class FaustSettings(NamedTuple):
    """What the application takes from the service's settings."""

    connection: KafkaConnection
    app_id: str
    session_timeout_s: float
    data_dir: Path
    state_cache_mib: int


class FaustCallbacks(NamedTuple):
    """What Faust calls: what was fetched of the source topics, and both ends of an assignment."""

    fold: Callable[[Fetched], Awaitable[None]]
    revoked: Callable[..., Awaitable[None]]
    recovered: Callable[[], Awaitable[None]]


class FaustLog:
    """The source topics as Faust's consumer reads and commits them (see consumption.SourceLog)."""

    def __init__(self, consumer: Callable[[], Any]) -> None:
        self._consumer = consumer

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        """See SourceLog.seek.

        On the consumer's own thread: Faust's seek() changes the fetcher from this one, and the
        consumer, which goes through it meanwhile, breaks with a KeyError. By then the group may have
        taken the partition away.
        """
        thread = self._consumer()._thread
        with contextlib.suppress(IllegalStateError, AssertionError):
            await thread.call_thread(thread.seek, TP(topic, partition), offset)

    def acknowledge(self, partition: int, offsets: Mapping[str, int]) -> None:
        """Let the group begin after these offsets, by topic, when it reads the partition anew."""
        self._consumer().acknowledge(partition, offsets)

    def places(self) -> dict[tuple[str, int], ReadPlace]:
        """See SourceLog.places."""
        consumer = self._consumer()
        found: dict[tuple[str, int], ReadPlace] = {}
        for place in consumer.assignment():
            # Revoked or sought meanwhile, on the consumer's thread.
            with contextlib.suppress(AssertionError, AttributeError):
                end, position = consumer.highwater(place), consumer.read_position(place)
                if end is not None:
                    found[place.topic, place.partition] = ReadPlace(position, end)
        return found

    def reads(self) -> int:
        """See SourceLog.reads."""
        return self._consumer().reads


def build_app(
    settings: FaustSettings, callbacks: FaustCallbacks, *, store: Callable[[Any, Any], Any]
) -> tuple[Any, Any]:
    """The application and its table; nothing connects yet.

    Args:
        settings: where and as whom.
        callbacks: what it calls.
        store: makes the table's store from the application and the table.

    Raises:
        DataDirUnusable: Faust's directory cannot be made.
        KafkaCredentialsUnreadable: a file of the connection cannot be read.
    """
    make_data_dir(settings.data_dir)
    app: Any = faust.App(
        settings.app_id,
        broker=f"kafka://{settings.connection.bootstrap.replace(',', ';')}",
        broker_credentials=_credentials(settings.connection),
        datadir=str(settings.data_dir / "faust"),
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=min(HEARTBEAT_S, settings.session_timeout_s / 4),
        broker_rebalance_timeout=max(REBALANCE_S, settings.session_timeout_s * 3),
        broker_request_timeout=settings.session_timeout_s * 3,
        broker_commit_interval=1.0,
        # Rows on disk that are ahead of the changelog are of another one: Worker restores them whole.
        recovery_consistency_check=False,
    )
    table = app.Table("joins", key_type=bytes, value_type=bytes, on_recover=callbacks.recovered)
    table._data = store(app, table)  # Faust's registry of stores takes no arguments for them
    if settings.app_id == "ratchet.aggregator":
        assert changelog_of(table) == AGGREGATOR_CHANGELOG, changelog_of(table)
    app.topics.add(app.topic(*MODELS))
    app.transport.Consumer = partial(SourceConsumer, topics=MODELS, fold=callbacks.fold)
    app.on_partitions_revoked.connect(callbacks.revoked)
    return app, table


def make_data_dir(path: Path) -> None:
    """Make Faust's directory where it is missing.

    Raises:
        DataDirUnusable: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataDirUnusable(f"RATCHET_DATA_DIR: {error}") from error


def _credentials(connection: KafkaConnection) -> Any:
    """The connection's security as Faust takes it, for its consumer and its producer."""
    given = connection.security_arguments()
    context = given.get("ssl_context")
    if "sasl_oauth_token_provider" in given:
        return faust.OAuthCredentials(
            oauth_cb=given["sasl_oauth_token_provider"], ssl_context=context
        )
    if "sasl_mechanism" in given:
        return faust.SASLCredentials(
            username=given["sasl_plain_username"],
            password=given["sasl_plain_password"],
            mechanism=given["sasl_mechanism"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def changelog_of(table: Any) -> str:
    """Name of the table's changelog topic."""
    return table.changelog_topic.get_topic_name()


def owned_partitions(app: Any, changelog: str) -> list[int]:
    """Partitions that the group assigned to this worker, in order."""
    assigned = app.assignor.assigned_actives()
    return sorted({tp.partition for tp in assigned if tp.topic == changelog})


def changelog_end(app: Any, changelog: str, partition: int) -> int:
    """Offset of the last record of a changelog partition when recovery began; -1 for none."""
    return app.tables.recovery.active_highwaters.get(TP(changelog, partition), -1)


def coordinator_of(app: Any) -> Any:
    """The aiokafka group coordinator below Faust's consumer; it runs on the consumer's thread."""
    return app.consumer._thread._consumer._coordinator


def expelled(app: Any) -> bool:
    """The coordinator has taken this worker's generation away: its session had ended."""
    return coordinator_of(app).generation == NO_GENERATION
