"""The Flink twin beside the aggregator: over one log both come to the same counts."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.flink_peer import newest_values, sink_topics
from services.aggregator.aggregates import FIGURES
from shared.contracts.events.base import Context, Event, Message
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType, FeedbackWithdrawn
from shared.contracts.events.interactions import Outcome, Purpose
from shared.contracts.events.signals import SignalType
from shared.contracts.feedback_id import default_feedback_id
from shared.contracts.topics import FEEDBACK, INTERACTIONS
from shared.kafka.log import NewRecord
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from tests.support.aggregator import feedback, interaction, signal, vote, withdrawn
from tests.support.aggregator_process import AggregatorProcess, Series, record, send, total
from tests.support.flink import (
    Figures,
    aggregator_figures,
    compare,
    differences,
    run_twin,
    twin_figures,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]

TRACES = 400
SERIES = ("version", "arm", "rollout", "segment")
COUNTERS = {
    "ratchet_feedback_total": ("feedback", "feedback", "version", "type"),
    "ratchet_satisfaction_count_total": ("satisfaction", "score_count", *SERIES),
    "ratchet_satisfaction_sum_total": ("satisfaction", "score_sum", *SERIES),
}
"""The aggregator's counters; of each the twin's sink and column, and the labels."""
QUESTION = Message(role="user", content="Where is my parcel?")
ANSWER = Message(role="assistant", content='It says "role":"assistant".')
TOOL = Message(role="tool", content="{}", tool_call_id="1")
CONVERSATIONS = ((QUESTION,), (QUESTION, ANSWER, QUESTION), (QUESTION, ANSWER, TOOL))
PURPOSES = (*[Purpose.live] * 6, Purpose.explicit, Purpose.comparison, Purpose.evaluation)
OUTCOMES = (*[Outcome.ok] * 6, Outcome.crash, Outcome.timeout, Outcome.client_error)
SEGMENTS = ("", "", "pro")
OPINIONS: tuple[tuple[FeedbackType, object], ...] = (
    (FeedbackType.thumbs_up, None),
    (FeedbackType.thumbs_down, None),
    *((FeedbackType.rating, stars) for stars in range(1, 6)),
)
OTHERS: tuple[tuple[FeedbackType, object], ...] = (
    (FeedbackType.text_correction, {"corrected": "It is in the depot."}),
    (FeedbackType.comment, "7"),
    (FeedbackType.demonstration, "It will come tomorrow."),
)
SIGNALS: tuple[dict[str, object], ...] = (
    {"kind": SignalType.copy},
    {"kind": SignalType.regenerate},
    {"kind": SignalType.abandon},
    {"kind": SignalType.edit_kept, "value": 0.37},
    {"kind": SignalType.edit_kept, "value": 1.5 / 256},
    {"kind": SignalType.edit_kept, "value": 2.5 / 256},
    {"kind": SignalType.follow_up, "dissatisfied": True},
    {"kind": SignalType.follow_up, "dissatisfied": False},
)


class History:
    """Interactions and what people said of them, from one seed, in an order of mishaps.

    What is said of every fourth answer is in the log before the answer.
    """

    def __init__(self, prefix: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._prefix = prefix
        self.interactions: list[Event] = []
        self.early: list[Event] = []
        self.late: list[Event] = []
        for number in range(TRACES):
            self._trace(number)
        repeated = self._random.sample(self.interactions, TRACES // 10)
        self.interactions += [one.model_copy(update={"version": "another"}) for one in repeated]
        for said in (self.early, self.late):
            said.extend(self._random.sample(said, len(said) // 10))
            self._random.shuffle(said)

    def _trace(self, number: int) -> None:
        pick = self._random.choice
        trace, tenant = f"{self._prefix}-{number}", pick(("acme", "globex"))
        before = number % 4 == 0
        feedback_log = self.early if before else self.late
        version = f"{self._prefix}-v{number % 2}"
        self.interactions.append(
            interaction(
                trace,
                tenant=tenant,
                version=version,
                arm=("stable", "candidate")[number % 2],
                purpose=pick(PURPOSES),
                user=pick(("", f"asker-{number}")),
                outcome=pick(OUTCOMES),
                seconds=number * 7.0,
                context=Context(segment=pick(SEGMENTS)),
                messages=pick(CONVERSATIONS),
                api=pick(("", "", "", "responses", "embeddings")),
            )
        )
        for person in range(pick((0, 1, 1, 2, 3))):
            # Whose score is an answer's first is the row's matter where a withdrawal comes first.
            known = person == 0 if before else pick((True, True, True, False))
            feedback_log += self._of_a_person(tenant, trace, f"{number}-{person}", known=known)
        if pick((True, False)):
            options = pick(SIGNALS)
            feedback_log.append(signal(trace=trace, tenant=tenant, seconds=9, **options))  # type: ignore[arg-type]
        if number % 20 == 0:
            # Nobody's scores count more than three times a day; always the same, whichever count.
            for many in range(6):
                place = {"tenant": "acme", "version": version, "arm": "stable"}
                self.interactions.append(interaction(f"{trace}-{many}", seconds=number, **place))  # type: ignore[arg-type]
                said = feedback("cap", f"{trace}-{many}", user=f"keen-{number}")
                feedback_log.append(said)
            feedback_log.append(feedback("lost", f"{trace}-lost", tenant=tenant))
            feedback_log.append(vote(f"{trace}-vote", tenant=tenant))

    def _of_a_person(self, tenant: str, trace: str, user: str, *, known: bool) -> Iterator[Event]:
        """Revisions of one feedback, in the order in which they were received."""
        pick, seconds = self._random.choice, 1.0
        opinion = pick((True, True, False))
        kinds = OPINIONS if opinion else (pick(OTHERS),)
        numbered = pick((True, False))
        name = default_feedback_id(tenant, trace, user, kinds[0][0])
        for revision in range(pick((1, 1, 2, 4))):
            seconds += 1
            kind, value = pick(kinds)
            by_receipt = not numbered or pick((True, False, False, False))
            place = {"revision": revision if not by_receipt else 0, "seconds": seconds}
            said: FeedbackSubmitted | FeedbackWithdrawn
            if revision and pick((True, False, False)):
                place["revision"] = max(1, int(place["revision"]))
                said = withdrawn(name, trace, kind, tenant=tenant, **place)  # type: ignore[arg-type]
            else:
                said = feedback(
                    name, trace, kind, value, tenant=tenant, anonymous=not known, **place
                )  # type: ignore[arg-type]
            yield said.model_copy(update={"by_receipt": by_receipt, "user_id": user})
            if opinion and not by_receipt and isinstance(said, FeedbackSubmitted):
                # Of one number the first body in the log counts; another is a conflict.
                yield said.model_copy(
                    update={"type": FeedbackType.rating, "value": 3, "user_id": user}
                )


@pytest.fixture
async def log(kafka: str) -> AsyncIterator[KafkaLog]:
    client = KafkaLog(KafkaConnection(kafka), source="/ratchet/test")
    await client.start()
    yield client
    await client.stop()


async def create_sinks(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics(sink_topics(partitions=2))
    await admin.close()


async def send_history(log: KafkaLog, worker: AggregatorProcess, history: History) -> None:
    """Feedback before and after its interaction, and records that nobody can read.

    The worker has read the interactions before the later feedback is there: it may read one topic
    ahead of the other, and what is late in the log would be early to it.
    """

    async def read() -> bool:
        counted = (await worker.metrics())["ratchet_event_age_seconds_count"]
        return total(counted, topic=INTERACTIONS) == len(history.interactions)

    await send(log, FEEDBACK, *history.early)
    await send(log, INTERACTIONS, *history.interactions)
    await eventually(read, "the interactions are read")
    await send(log, FEEDBACK, *history.late)
    for topic, event in ((INTERACTIONS, history.interactions[0]), (FEEDBACK, history.late[0])):
        good = record(topic, event)
        broken = NewRecord(topic, good.key, b"{", good.headers)
        foreign = NewRecord(topic, good.key, good.value, (("ce_type", b"another.v1"),))
        await log.append_many([broken, foreign], timeout_s=60)


def of_labels(series: Series, prefix: str, *names: str) -> dict[tuple[str, ...], float]:
    """A metric's values over 0 by some labels, summed over the others."""
    sums: Counter[tuple[str, ...]] = Counter()
    for labels, value in series.items():
        found = dict(labels)
        if found["version"].startswith(prefix):
            sums[tuple(found[name] for name in names)] += value  # type: ignore[assignment]
    return {key: value for key, value in sums.items() if value}


async def of_twin(
    log: KafkaLog, sink: str, value: str, *names: str
) -> dict[tuple[str, ...], float]:
    rows: list[dict[str, Any]] = await newest_values(log, f"ratchet-flink.{sink}.v1")
    return {tuple(row[name] for name in names): row[value] for row in rows if row[value]}


async def test_over_one_log_both_come_to_the_same_counts(
    log: KafkaLog,
    kafka: str,
    tmp_path: Path,
    unique: str,
    record_property: Callable[[str, object], None],
) -> None:
    await create_sinks(kafka)
    worker = AggregatorProcess(
        kafka, tmp_path / "aggregator", environment={"RATCHET_ROUTER_SEGMENTS": "pro"}
    ).start()
    try:
        await worker.ready()
        await send_history(log, worker, History(unique, seed=14))
        run_twin(kafka, tmp_path, timeout_s=240)
        twin = await twin_figures(log)
        theirs: Figures = {}

        async def agrees() -> bool:
            theirs.clear()
            theirs.update(await aggregator_figures(log))
            return theirs == twin

        with contextlib.suppress(AssertionError):
            await eventually(agrees, "the same figures")
        assert not differences(theirs, twin), "\n".join(differences(theirs, twin))
        assert "Empty set" in compare(kafka, tmp_path, timeout_s=240)
        expected = {name: await of_twin(log, *sink) for name, sink in COUNTERS.items()}
        counters: dict[str, dict[tuple[str, ...], float]] = {}

        async def count_the_same() -> bool:
            metrics = await worker.metrics()
            for name, (_, _, *labels) in COUNTERS.items():
                counters[name] = of_labels(metrics[name], unique, *labels)
            return counters == expected

        # A score goes by a topic of its own, whose last one is counted a moment later.
        with contextlib.suppress(AssertionError):
            await eventually(count_the_same, "the same counters")
        assert counters == expected
    finally:
        worker.stop()

    # Nothing of this is worth anything where the log held nothing of a kind.
    day = [row for (_, window, _), row in twin.items() if window == "1d"]
    sums = dict(zip(FIGURES, map(sum, zip(*day, strict=True)), strict=True))
    assert all(value > 0 for value in sums.values()), sums
    assert len(expected["ratchet_feedback_total"]) >= 2 * (len(FeedbackType) - 1)
    for name, value in sums.items():
        record_property(name, value)
