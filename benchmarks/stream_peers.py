"""Quix Streams and Bytewax at the aggregator's work: one process that joins the benchmark's log.

    .venv-bench-streams/bin/python -m benchmarks.stream_peers quix BOOTSTRAP DIRECTORY EVENTS

Each framework reads, keeps the rows, writes and commits by its own means: Quix Streams on RocksDB with a
changelog, Bytewax by snapshots into SQLite each second. What a record means is the aggregator's:
its validation, its reducers and its outputs, so that the counts can be compared. The peers do less in
three ways: their counters and windows are in memory and in no checkpoint, no tick moves time, and
their progress counts what is folded, ours what the brokers confirmed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from services.aggregator import join, pairs
from services.aggregator.aggregates import INTERACTIONS as SHOWN
from services.aggregator.aggregates import Aggregates
from services.aggregator.errors import EventRefused
from services.aggregator.fold import Fold, FoldRules
from services.aggregator.rows import CapRow, PromptRow, TraceRow
from shared.contracts.events.base import Event
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.topics import (
    DEAD_LETTERS,
    EXAMPLES,
    FEEDBACK,
    INTERACTIONS,
    PREFERENCES,
    RATED,
)
from shared.kafka.envelope import UnreadableRecord, decode, encode, models_by_type

OUTPUTS = (EXAMPLES, PREFERENCES, RATED, DEAD_LETTERS)
COMMIT_S = 1.0
REPORT_EVERY = 500
_MODELS = {
    INTERACTIONS: models_by_type(InteractionRecorded),
    FEEDBACK: models_by_type(FeedbackSubmitted),
    RATED: models_by_type(RatedAnswer, RatedScore),
}
_PRODUCER = {"compression.type": "lz4", "enable.idempotence": True, "acks": "all"}


class PeerOutput(NamedTuple):
    """A record to write; `topic` is the aggregator's name of it."""

    topic: str
    key: str
    value: bytes
    headers: list[tuple[str, bytes]]


def topic_of(peer: str, topic: str) -> str:
    """A peer's own topic, where it is one of those that readers write."""
    return f"{peer}.{topic}" if topic in OUTPUTS else topic


@dataclass
class PeerJoin:
    """Folds records as the aggregator does; the framework keeps the rows."""

    total: int
    """Interactions and feedback in the log."""
    rules: FoldRules = field(default_factory=lambda: FoldRules(prompt_ignores=("clock", "ids")))
    aggregates: Aggregates = field(default_factory=Aggregates)
    folded: int = 0

    def fold(
        self,
        topic: str,
        headers: Sequence[tuple[str, bytes]],
        value: bytes,
        ts_ms: int,
        stored: bytes | None,
    ) -> tuple[bytes | None, list[PeerOutput]]:
        """The row after a record, and what to write."""
        try:
            event = decode(headers, value, _MODELS[topic])
            fold = self._folded(event, value, ts_ms, stored)
        except (UnreadableRecord, EventRefused) as error:
            reason = json.dumps({"reason": error.reason, "detail": error.detail})
            return stored, [PeerOutput(DEAD_LETTERS, topic, value, [("reason", reason.encode())])]
        self.aggregates.apply(fold.contributions)
        if topic != RATED:
            self._report()
        return fold.row.encode(), [
            PeerOutput(
                output.topic,
                output.key,
                output.event.to_json(),
                list(
                    encode(output.event, source="/peer", event_id=output.event_id, time=output.time)
                ),
            )
            for output in fold.outputs
        ]

    def _folded(self, event: Event, raw: bytes, ts_ms: int, stored: bytes | None) -> Fold[Any]:
        match event:
            case InteractionRecorded():
                row = TraceRow.decode(stored) if stored else None
                return join.fold_interaction(row, event, raw, ts_ms, self.rules)
            case FeedbackSubmitted():
                row = TraceRow.decode(stored) if stored else None
                return join.fold_feedback(row, event, ts_ms, self.rules)
            case RatedAnswer():
                return pairs.fold_rated(PromptRow.decode(stored) if stored else None, event)
            case RatedScore():
                cap = CapRow.decode(stored) if stored else None
                return join.fold_score(cap, event, self.rules)
            case _:
                raise EventRefused("unknown_type", type(event).__name__)

    def _report(self) -> None:
        self.folded += 1
        if self.folded % REPORT_EVERY == 0 or self.folded == self.total:
            counts: Counter[str] = Counter()
            for versions in self.aggregates.windows["1d"].values():
                for version, sums in versions.items():
                    counts[version] += int(sums[SHOWN])
            for (version, kind), count in self.aggregates.feedback.items():
                counts[f"{version}/{kind}"] += count
            marks = (self.folded, time.monotonic(), time.process_time(), json.dumps(counts))
            print("seen", *marks, sep="\t", flush=True)


def quix(bootstrap: str, directory: Path, total: int) -> None:
    """Quix Streams: one row a key in its RocksDB, at least once, committed each second."""
    from quixstreams import Application, message_context
    from quixstreams.models.serializers.base import Serializer

    class OutputValue(Serializer):
        """The value of a PeerOutput."""

        def __call__(self, output: PeerOutput, ctx: Any = None) -> bytes:  # noqa: ARG002
            return output.value

    joined = PeerJoin(total)
    app = Application(
        bootstrap,
        consumer_group="bench-quix",
        auto_offset_reset="earliest",
        commit_interval=COMMIT_S,
        state_dir=directory,
        producer_extra_config=_PRODUCER,
        loglevel="WARNING",
    )
    raw = dict.fromkeys(("key_deserializer", "value_deserializer"), "bytes")
    written = {
        name: app.topic(
            topic_of("quix", name), key_serializer="str", value_serializer=OutputValue(), **raw
        )
        for name in OUTPUTS
    }

    def fold(value: Any, _: Any, ts_ms: int, headers: Any, state: Any) -> list[PeerOutput]:
        topic = message_context().topic.removeprefix("quix.")
        row, outputs = joined.fold(topic, headers or [], value, ts_ms, state.get_bytes("row"))
        if row is not None:
            state.set_bytes("row", row)
        return outputs

    shown, said = (app.dataframe(app.topic(name, **raw)) for name in (INTERACTIONS, FEEDBACK))
    for frame in (shown.concat(said), app.dataframe(written[RATED])):
        outputs = frame.apply(fold, stateful=True, metadata=True, expand=True)
        outputs.set_headers(lambda one, *_: one.headers).to_topic(
            lambda one, *_: written[one.topic], key=lambda one: one.key
        )
    app.run()


def bytewax(bootstrap: str, directory: Path, total: int) -> None:
    """Bytewax: one row a key in memory, snapshots of the changed ones into SQLite each second."""
    from bytewax import operators
    from bytewax._bytewax import cli_main, init_db_dir
    from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig

    peer = PeerJoin(total)

    def fold(row: bytes | None, message: Any) -> tuple[bytes | None, list[Any]]:
        topic = message.topic.removeprefix("bytewax.")
        row, outputs = peer.fold(topic, message.headers, message.value, message.timestamp[1], row)
        return row, [
            KafkaSinkMessage(
                one.key.encode(), one.value, topic_of("bytewax", one.topic), one.headers
            )
            for one in outputs
        ]

    flow = Dataflow("bench")
    topics = [INTERACTIONS, FEEDBACK, topic_of("bytewax", RATED)]
    read = operators.input("read", flow, KafkaSource([bootstrap], topics))
    keyed = operators.key_on("key", read, lambda message: message.key.decode())
    joined = operators.stateful_flat_map("join", keyed, fold)
    outputs = operators.map("output", joined, lambda pair: pair[1])
    operators.output("write", outputs, KafkaSink([bootstrap], None, add_config=_PRODUCER))
    directory.mkdir(parents=True, exist_ok=True)
    init_db_dir(directory, 1)
    cli_main(
        flow,
        workers_per_process=1,
        epoch_interval=timedelta(seconds=COMMIT_S),
        recovery_config=RecoveryConfig(str(directory)),
    )


PEERS = {"quix": quix, "bytewax": bytewax}


if __name__ == "__main__":
    _, name, address, state, events = sys.argv
    PEERS[name](address, Path(state), int(events))
