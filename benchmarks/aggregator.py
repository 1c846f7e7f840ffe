"""Events a second that one aggregator worker counts for good, beside a bare Faust agent.

    python -m benchmarks.aggregator [--interactions 60000] [--share 0.08]

In one run, against one real broker with four partitions of each topic: interactions and feedback
(`share` of the interactions get one) are written first, then each reader works off the same log.

- *limit*: an aiokafka consumer that only fetches;
- *peer*: a Faust agent that does nothing with what it reads;
- *peer + table*: a Faust agent that writes one table row for each event, and no more: no join,
  no output, acknowledged before its changelog is confirmed;
- *Quix Streams*, *Bytewax*: the same join by another framework, in the environment that `setup.sh bench`
  makes (`benchmarks.stream_peers` says what they do less);
- *flink*: the Flink twin of the figures, where `make flink` was run (`benchmarks.flink_peer`);
- *ours*: `python -m services.aggregator`: decoded, joined, counted, outputs, rows and checkpoints
  confirmed by the broker, from the counters it exports.

Each rate is taken between the first and the last tenth of the events, so that starting costs
nothing: by the wall clock, and by the reader's own processor time, which other work on the machine
disturbs less. Where counts or the numbers of outputs differ from the log's, it is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks import flink_peer
from benchmarks.aggregator_peers import BROKEN, in_log, peer_rate, settled
from benchmarks.rates import ProgressMark, Rate, slope
from benchmarks.stream_peers import OUTPUTS, PEERS, topic_of
from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from shared.contracts.events.base import Context, Event, Message
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.interactions import Arm, Attempt, InteractionRecorded, Outcome, Purpose
from shared.contracts.topics import FEEDBACK, INTERACTIONS
from shared.kafka.log import NewRecord, event_record
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection

GOAL = 12_000
BROKEN_RECORDS = 20
"""Interactions in the log that are none and become dead letters."""
PARTITIONS = 4
CHUNK = 2000
FETCH = 500
LIMIT_S = 120
SCRAPE_S = 0.5
"""Between two looks at the worker's counters; a scrape costs it processor time."""
PROMPT = "My parcel should have come on Tuesday and the page still says preparing. What now? " * 3
ANSWER = "I am sorry about the wait. Your parcel left our warehouse this morning. " * 5

_BARE = textwrap.dedent(
    """
    import sys, time, faust
    bootstrap, name, data, table, topics, *sys.argv[1:] = sys.argv[1:]
    app = faust.App(name, broker=f"kafka://{bootstrap}", datadir=data, web_enabled=False,
                    topic_allow_declare=False, topic_disable_leader=True, store="memory://",
                    stream_wait_empty=False, table_standby_replicas=0)
    topic = app.topic(*topics.split(","), key_type=bytes, value_type=bytes,
                      key_serializer="raw", value_serializer="raw")
    rows = app.Table("rows", key_type=bytes, value_type=bytes) if table == "table" else None

    @app.agent(topic)
    async def read(stream):
        seen = 0
        async for event in stream.events():
            if rows is not None:
                rows[event.message.key] = event.message.value
            seen += 1
            if seen % 500 == 0:
                # Faust turns print into log lines.
                print("seen", seen, time.monotonic(), time.process_time(),
                      file=sys.__stdout__, flush=True)

    app.main()
    """
)


def events(count: int, share: float, seed: int = 7) -> tuple[list[NewRecord], int]:
    """Interactions, and feedback on a share of them soon after, in log order; how many there are.

    They ask 2,000 prompts over and over, which are others for another seed.
    """
    rng = random.Random(seed)
    now = datetime.now(UTC)
    records: list[NewRecord] = []
    kinds = (FeedbackType.thumbs_up, FeedbackType.thumbs_up, FeedbackType.thumbs_down)
    for number in range(count):
        trace = uuid.UUID(int=rng.getrandbits(128)).hex
        version = "assistant-v1.1" if rng.random() < 0.2 else "assistant-v1.0"
        attempt = Attempt(
            version=version, arm=Arm.stable, outcome=Outcome.ok, status=200, duration_ms=90.0
        )
        user = f"user-{rng.randrange(5000)}"
        shown = InteractionRecorded(
            trace_id=trace,
            tenant="default",
            model="assistant",
            version=version,
            arm=Arm.candidate if version.endswith("1.1") else Arm.stable,
            rollout="bench",
            purpose=Purpose.live,
            user_id=user,
            context=Context(locale="en", category="problem_solving", session_id=user),
            endpoint="chat",
            stream=False,
            messages=(Message(role="user", content=f"{PROMPT} ({number % 2000}.{seed})"),),
            completion=ANSWER,
            finish_reason="stop",
            prompt_tokens=60,
            completion_tokens=70,
            outcome=Outcome.ok,
            attempts=(attempt,),
            started_at=now,
            duration_ms=90.0,
        )
        records.append(_record(INTERACTIONS, trace, shown, now))
        if rng.random() < share:
            given = FeedbackSubmitted(
                feedback_id=f"f-{trace}",
                trace_id=trace,
                tenant="default",
                type=rng.choice(kinds),
                user_id=user,
                submitted_at=now,
            )
            records.append(_record(FEEDBACK, trace, given, now))
    return records, len(records)


def _record(topic: str, key: str, event: Event, now: datetime) -> NewRecord:
    return event_record(topic, event, key=key, source="/ratchet/benchmark", event_id=key, time=now)


async def fill(bootstrap: str, records: Sequence[NewRecord]) -> None:
    """Write all records, acknowledged."""
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/benchmark")
    await log.start()
    for start in range(0, len(records), CHUNK):
        await log.append_many(records[start : start + CHUNK], timeout_s=60)
    await log.stop()


async def fetch_rate(bootstrap: str, total: int) -> Rate:
    """What a consumer that only fetches reads a second."""
    consumer = AIOKafkaConsumer(
        INTERACTIONS, FEEDBACK, bootstrap_servers=bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    marks: list[ProgressMark] = []
    seen = 0
    try:
        async with asyncio.timeout(LIMIT_S):
            while seen < total:
                for batch in (await consumer.getmany(timeout_ms=500, max_records=FETCH)).values():
                    seen += len(batch)
                marks.append(ProgressMark(seen, time.monotonic(), time.process_time()))
    finally:
        await consumer.stop()
    return slope(marks, total)


def bare_rate(bootstrap: str, total: int, directory: Path, *, table: bool) -> Rate:
    """What a Faust agent reads a second that does nothing, or writes a row for each event."""
    name = f"bench-{'table' if table else 'bare'}"
    arguments = [bootstrap, name, str(directory / name), "table" if table else "-"]
    command = [sys.executable, "-c", _BARE, *arguments, f"{INTERACTIONS},{FEEDBACK}"]
    command += ["worker", "-l", "error"]
    marks: list[ProgressMark] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + LIMIT_S
        try:
            for line in process.stdout:
                if not line.startswith("seen "):  # Faust's banner
                    continue
                _, seen, wall_s, cpu_s = line.split()
                marks.append(ProgressMark(int(seen), float(wall_s), float(cpu_s)))
                if int(seen) >= total - 500 or time.monotonic() > deadline:
                    break
        finally:
            process.kill()
    return slope(marks, total)


def our_rate(bootstrap: str, total: int, directory: Path) -> Rate:
    """What our worker counts for good a second, by its own exported figures."""
    port = free_ports(["aggregator"])["aggregator"]
    environment = {
        **os.environ,
        "RATCHET_KAFKA_BOOTSTRAP": bootstrap,
        "RATCHET_AGGREGATOR_PORT": str(port),
        "RATCHET_DATA_DIR": str(directory),
    }
    marks: list[ProgressMark] = []
    with subprocess.Popen(
        [sys.executable, "-m", "services.aggregator"], env=environment
    ) as process:
        deadline = time.monotonic() + LIMIT_S
        try:
            while not marks or marks[-1].seen < total:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"the aggregator counted {marks[-1:]} of {total} and no more")
                time.sleep(SCRAPE_S)
                seen = counted(port)
                if seen:
                    marks.append(ProgressMark(seen, time.monotonic(), cpu_s(process.pid)))
        finally:
            process.kill()
    return slope(marks, total)


def counted(port: int) -> int:
    """Interactions and feedback in confirmed checkpoints."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
    except OSError:
        return 0
    wanted: tuple[Callable[[str], bool], ...] = (
        lambda line: line.startswith("ratchet_feedback_total{"),
        lambda line: (
            line.startswith("ratchet_quality_denominator{")
            and 'figure="feedback_rate"' in line
            and 'window="1d"' in line
        ),
    )
    return int(
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if any(test(line) for test in wanted))
    )


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _prepare(bootstrap: str, records: Sequence[NewRecord]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    names = [topic_of(peer, topic) for peer in PEERS for topic in OUTPUTS]
    response: Any = await admin.create_topics(
        [
            *(NewTopic(name, PARTITIONS, 1) for name in ("bench-table-rows-changelog", *names)),
            *flink_peer.sink_topics(PARTITIONS),
        ]
    )
    await admin.close()
    if any(code for _, code, *_ in response.topic_errors):
        raise SystemExit(f"the readers' topics were refused: {response.topic_errors}")
    await fill(bootstrap, records)


def measure(interactions: int, share: float) -> tuple[dict[str, Rate], list[str]]:
    """All rates in one run, and in words what differs between the counts."""
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name:
        directory = Path(name)
        stack = Stack(directory / "stack", services=[], ports="free")
        stack.up()
        try:
            stack.start("topics")
            bootstrap = stack.address("kafka")
            records, total = events(interactions, share)
            in_the_log = in_log(records)
            headers = records[0].headers
            records += [
                NewRecord(INTERACTIONS, f"broken-{number}", BROKEN, headers)
                for number in range(BROKEN_RECORDS)
            ]
            asyncio.run(_prepare(bootstrap, records))
            del records
            rates = {
                "limit": asyncio.run(fetch_rate(bootstrap, total)),
                "peer": bare_rate(bootstrap, total, directory, table=False),
                "peer + table": bare_rate(bootstrap, total, directory, table=True),
                "ours": our_rate(bootstrap, total, directory),
            }
            written = asyncio.run(settled(bootstrap, OUTPUTS))
            differences: list[str] = []
            for peer in PEERS:
                found = peer_rate(peer, bootstrap, total, directory)
                if found is None:
                    differences.append(f"{peer}: not measured")
                    continue
                rates[peer] = found.rate
                if found.counts != in_the_log:
                    differences.append(f"{peer} counts {found.counts}, the log has {in_the_log}")
                differences += [
                    f"{peer} wrote {theirs} to {topic}, we {ours}"
                    for topic, theirs, ours in zip(OUTPUTS, found.written, written, strict=True)
                    if theirs != ours
                ]
            if not flink_peer.installed():
                differences.append(
                    "flink: not measured, Flink is not installed: make flink does it"
                )
            elif (
                twin := flink_peer.twin_rate(bootstrap, total + BROKEN_RECORDS, directory)
            ) is None:
                differences.append("flink: not measured, its job failed")
            else:
                rates["flink"] = twin.rate
                differences.append(
                    f"flink began {twin.start_s:.1f} s and {twin.start_cpu_s:.1f} CPU seconds "
                    "before its first checkpoint with records"
                )
                if twin.counts != in_the_log:
                    differences.append(f"flink counts {twin.counts}, the log has {in_the_log}")
            return rates, differences
        finally:
            stack.down()


WHAT = {
    "limit": "aiokafka consumer, fetch only",
    "peer": "bare Faust agent",
    "peer + table": "Faust agent, one table write each",
    "ours": "aggregator worker: joined, counted, confirmed",
    "quix": "Quix Streams, the same join, counters in memory",
    "bytewax": "Bytewax, the same join, counters in memory",
    "flink": "Flink SQL twin, two slots: figures only, no outputs",
}


def main() -> int:
    """Print the table; exit status 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--interactions", type=int, default=60_000)
    parser.add_argument("--share", type=float, default=0.08, help="interactions with feedback")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    rates, differences = measure(arguments.interactions, arguments.share)
    ours = rates["ours"]
    if arguments.json:
        print(
            json.dumps(
                {
                    name: {"by_clock": round(rate.wall), "by_cpu_second": round(rate.cpu)}
                    for name, rate in rates.items()
                }
            )
        )
        return 0 if ours.wall >= GOAL else 1
    print(f"Aggregator, {arguments.interactions} interactions, {arguments.share:.0%} with feedback")
    print(f"  {'':<14}{'by the clock':>14}{'by CPU second':>15}   events/s")
    for name, rate in rates.items():
        print(f"  {name:<14}{rate.wall:>14,.0f}{rate.cpu:>15,.0f}   {WHAT[name]}")
    for name in (*PEERS, "flink"):
        if name in rates:
            print(f"ahead of {name} per CPU second: {ours.cpu / rates[name].cpu:.2f} times")
    for difference in differences:
        print(difference)
    verdict = "reached" if ours.wall >= GOAL else "MISSED"
    print(f"{verdict}: {ours.wall:,.0f} events/s by the clock (goal {GOAL:,})")
    return 0 if ours.wall >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
