"""Feedback a second that the feedback service takes in, acknowledged by Kafka, on one core.

    python -m benchmarks.ingestion [--seconds 8]

In one run, against one real broker, with wrk as the client (64 connections for single requests,
4 for batches of 1,000):

- *limit*: an aiokafka producer that only appends ready records of the same size (idempotent,
  acks=all, the partition named), one awaited send for each of 64 writers; the same by the group
  commit of `shared/kafka`, and 1,000 at a time by its batches;
- *bound*: a bare ASGI application under the same server, which reads the body and answers 202: what
  is left of a core once HTTP is spoken;
- *peer*: a FastAPI endpoint that does the same, and one that also checks the body with a pydantic
  model; neither stores anything;
- *ours*: `python -m services.feedback`: checked, redacted, identified, acknowledged by all brokers,
  then answered 202.

Each server is one process with one thread, so the rate a core-second of its own CPU time is what
one core to itself would give; the rate by the clock also has the client and the broker on the same
machine. Then single POSTs come at a fixed rate, whether answers come or not (open loop, see
benchmarks/fixed_rate.py), to ours and to the bound. At the end the feedback topic must hold exactly
as many records as were answered 202.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.fixed_rate import Target, at_fixed_rate
from benchmarks.ingestion_peers import serve_peer
from deploy.local.ports import free_ports
from deploy.local.stack import Stack
from shared.contracts.topics import FEEDBACK, RATED
from shared.kafka.log import NewRecord
from shared.kafka.partitions import partition_of
from shared.kafka.producer import BATCH_BYTES, LINGER_MS, KafkaLog
from shared.kafka.security import KafkaConnection

SINGLE_GOAL = 2_000
BATCH_GOAL = 20_000
SINGLE_SHARE_GOAL, BATCH_SHARE_GOAL = 0.6, 0.35
"""Of what the plain producer does in a CPU second."""
FIXED_RATE = 500
"""Single POSTs a second at which latency is taken."""
BATCH = 1_000
WRITERS = 64
WARM_UP_S = 2
READY_TIMEOUT_S = 30.0
SETTLE_S = 1.0
IDLE_S = 4

_ITEM = (
    '{"trace_id":"%032x","type":"rating","value":%d,"user_id":"user-%d",'
    '"metadata":{"locale":"en","category":"billing"}}'
)
_LUA_REPORT = """
function done(summary, latency)
  io.write(string.format('REPORT {"requests":%d,"us":%d,"p50":%d,"p99":%d,"bad":%d,"broken":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.timeout))
end
"""
_LUA_SINGLE = f"""
local n = 0
local headers = {{["content-type"] = "application/json"}}
function request()
  n = n + 1
  return wrk.format("POST", nil, headers, string.format('{_ITEM}', n, n % 5 + 1, n % 997))
end
{_LUA_REPORT}"""
_LUA_BATCH = f"""
local requests, n = {{}}, 0
local headers = {{["content-type"] = "application/json"}}
function init()
  for b = 1, 8 do
    local items = {{}}
    for i = 1, {BATCH} do
      items[i] = string.format('{_ITEM}', b * {BATCH} + i, i % 5 + 1, i % 997)
    end
    local body = '{{"items":[' .. table.concat(items, ",") .. ']}}'
    requests[b] = wrk.format("POST", "/v1/feedback/batch", headers, body)
  end
end
function request()
  n = n + 1
  return requests[n % 8 + 1]
end
{_LUA_REPORT}"""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one candidate did."""

    name: str
    events: int
    seconds: float
    cpu_s: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    failed: int = 0

    @property
    def rate(self) -> float:
        """Events a second by the clock."""
        return self.events / self.seconds

    @property
    def core_rate(self) -> float:
        """Events a second of the process's own CPU time."""
        return self.events / self.cpu_s


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_share(pid: int) -> float:
    """CPU seconds a second that a service uses without load: the polls of its consumers."""
    start = cpu_seconds(pid)
    time.sleep(IDLE_S)
    return (cpu_seconds(pid) - start) / IDLE_S


def load(name: str, url: str, pid: int, *, batch: bool, seconds: int, scripts: Path) -> LoadResult:
    """Load one endpoint with wrk, after a warm-up."""
    script = scripts / ("batch.lua" if batch else "single.lua")
    script.write_text(_LUA_BATCH if batch else _LUA_SINGLE)
    for duration in (WARM_UP_S, seconds):
        start_cpu = cpu_seconds(pid)
        connections = "4" if batch else str(WRITERS)
        ran = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "-s", str(script), url],
            check=True,
            capture_output=True,
            text=True,
        )
    used = cpu_seconds(pid) - start_cpu
    line = next(line for line in ran.stdout.splitlines() if line.startswith("REPORT "))
    report = json.loads(line.removeprefix("REPORT "))
    size = BATCH if batch else 1
    return LoadResult(
        name=name,
        events=(report["requests"] - report["bad"]) * size,
        seconds=report["us"] / 1e6,
        cpu_s=used,
        p50_ms=report["p50"] / 1000,
        p99_ms=report["p99"] / 1000,
        failed=report["bad"] + report["broken"],
    )


async def produce(bootstrap: str, seconds: float) -> list[LoadResult]:
    """The limits: nothing but appends of ready records."""
    connection = KafkaConnection(bootstrap)
    log = KafkaLog(connection, source="/ratchet/benchmark")
    await log.start()
    producer = plain_producer(connection)
    await producer.start()
    partitions = len(await producer.partitions_for(RATED))
    headers = tuple((f"ce_{n}", b"x" * 30) for n in range(6))

    def record(number: int) -> NewRecord:
        return NewRecord(RATED, f"{number:032x}", b"x" * 340, headers)

    async def send(record: NewRecord) -> None:
        key = record.key.encode()
        await producer.send_and_wait(
            record.topic,
            record.value,
            key,
            partition_of(key, partitions),
            headers=list(record.headers),
        )

    async def append(record: NewRecord) -> None:
        await log.append_many((record,))

    async def write(
        store: Callable[[NewRecord], Awaitable[None]], duration: float
    ) -> tuple[int, float, float]:
        """Records, seconds and CPU seconds of WRITERS writers, each of one record at a time."""
        numbers = itertools.count()
        start, cpu = time.monotonic(), time.process_time()

        async def writer() -> None:
            while time.monotonic() < start + duration:
                await store(record(next(numbers)))

        await asyncio.gather(*(writer() for _ in range(WRITERS)))
        return next(numbers), time.monotonic() - start, time.process_time() - cpu

    figures: list[LoadResult] = []
    for name, store in (("aiokafka alone", send), ("group commit alone", append)):
        await write(store, 1.0)
        figures.append(LoadResult(f"limit: {name}, one by one", *await write(store, seconds)))
    records = [record(number) for number in range(BATCH)]
    start, cpu, written = time.monotonic(), time.process_time(), 0
    while time.monotonic() < start + seconds:
        await asyncio.gather(*(log.append_many(records) for _ in range(4)))
        written += 4 * BATCH
    took, used = time.monotonic() - start, time.process_time() - cpu
    figures.append(LoadResult("limit: batches alone, 1,000 at a time", written, took, used))
    await producer.stop()
    await log.stop()
    return figures


def plain_producer(connection: KafkaConnection) -> AIOKafkaProducer:
    """aiokafka's producer with the settings of the service's own."""
    return AIOKafkaProducer(
        **connection.client_arguments(),
        acks="all",
        enable_idempotence=True,
        linger_ms=LINGER_MS,
        max_batch_size=BATCH_BYTES,
        compression_type="lz4",
    )


async def count(bootstrap: str, topic: str) -> int:
    """Records that a topic holds."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        partitions = consumer.partitions_for_topic(topic)
        assert partitions, topic
        ends = await consumer.end_offsets([TopicPartition(topic, n) for n in partitions])
    finally:
        await consumer.stop()
    return sum(ends.values())


def accepted(url: str) -> int:
    """What the service says it acknowledged."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return int(
        sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("ratchet_ingestion_accepted_total{")
        )
    )


def settled(url: str) -> int:
    """`accepted`, once the requests that the client left behind are through."""
    last = -1
    while last != (now := accepted(url)):
        last = now
        time.sleep(SETTLE_S)
    return now


def measure_peer(kind: str, name: str, seconds: int, scripts: Path) -> LoadResult:
    """Start a peer, load it, end it; print its latency at the fixed rate if it is the bound."""
    port = free_ports(["peer"])["peer"]
    command = [sys.executable, "-m", "benchmarks.ingestion", "--serve", kind, "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            _wait_for(port)
            url = f"http://127.0.0.1:{port}/v1/feedback"
            if kind == "bare":
                print(latency("a bare ASGI app", port, seconds), flush=True)
            return load(name, url, process.pid, batch=False, seconds=seconds, scripts=scripts)
        finally:
            process.terminate()


def latency(name: str, port: int, seconds: int) -> str:
    """A line on the latency of single POSTs at the fixed rate."""
    target = Target(
        "127.0.0.1",
        port,
        "/v1/feedback",
        lambda number: (_ITEM % (number, number % 5 + 1, number % 997)).encode(),
    )
    found = asyncio.run(at_fixed_rate(target, rate=FIXED_RATE, seconds=seconds))
    return (
        f"{FIXED_RATE} single POSTs/s (open loop), {name}: p50 {found.percentile_ms(50):.1f} ms, "
        f"p99 {found.percentile_ms(99):.1f} ms, {found.failed} failed"
    )


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def table(figures: Sequence[LoadResult]) -> str:
    """The figures as a table in plain text."""
    head = f"{'':44} {'events/s':>10} {'events':>13} {'p50 ms':>8} {'p99 ms':>8} {'failed':>7}"
    how = f"{'':44} {'by clock':>10} {'by CPU second':>13} {'by clock':>8} {'by clock':>8}"
    lines = [head, how, "-" * len(head)]
    for one in figures:
        p50 = f"{one.p50_ms:8.1f}" if one.p50_ms is not None else f"{'':8}"
        p99 = f"{one.p99_ms:8.1f}" if one.p99_ms is not None else f"{'':8}"
        lines.append(
            f"{one.name:44} {one.rate:10,.0f} {one.core_rate:13,.0f} {p50} {p99} {one.failed:7}"
        )
    return "\n".join(lines)


def measure(seconds: int) -> int:
    """The whole run; returns the exit status."""
    figures: list[LoadResult] = []
    with tempfile.TemporaryDirectory(prefix="ratchet-ingestion-") as folder:
        scripts = Path(folder)
        stack = Stack(scripts / "stack", services=["feedback"], ports="free")
        with stack:
            bootstrap, url = stack.address("kafka"), stack.url("feedback")
            print("ingestion: the limit (aiokafka alone) …", flush=True)
            figures += asyncio.run(produce(bootstrap, seconds))
            print("ingestion: the bound and the peers …", flush=True)
            figures.append(
                measure_peer("bare", "bound: ASGI, body read, nothing stored", seconds, scripts)
            )
            figures.append(
                measure_peer("raw", "peer: FastAPI, body read, nothing stored", seconds, scripts)
            )
            figures.append(
                measure_peer(
                    "checked", "peer: FastAPI with a model, nothing stored", seconds, scripts
                )
            )
            print("ingestion: ours …", flush=True)
            before, said = asyncio.run(count(bootstrap, FEEDBACK)), accepted(url)
            pid = stack.pid("feedback")
            idle = idle_share(pid)
            single = load(
                "ours: one by one, acknowledged by Kafka",
                f"{url}/v1/feedback",
                pid,
                batch=False,
                seconds=seconds,
                scripts=scripts,
            )
            batch = load(
                "ours: batches of 1,000, acknowledged by Kafka",
                url,
                pid,
                batch=True,
                seconds=seconds,
                scripts=scripts,
            )
            figures += [single, batch]
            at_rate = latency("ours", urlsplit(url).port or 80, seconds)
            said = settled(url) - said
            stored = asyncio.run(count(bootstrap, FEEDBACK)) - before
    print(f"\n{table(figures)}\n\n{at_rate}")
    print(f"ours, without load: {idle:.1%} of a core, which is in its rates by CPU second")
    print(f"answered 202: {said:,}; in the topic: {stored:,}")
    return verdict(figures, stored == said)


def verdict(figures: Sequence[LoadResult], counts_agree: bool) -> int:
    """Say what was met; 1 where something was not."""
    plain_single, _, plain_batch, bound, *_, single, batch = figures
    single_share = single.core_rate / plain_single.core_rate
    batch_share = batch.core_rate / plain_batch.core_rate
    load_average = os.getloadavg()[0]
    checks = [
        (
            single.core_rate >= SINGLE_GOAL,
            f"single: {single.core_rate:,.0f} by CPU second (goal {SINGLE_GOAL:,})",
        ),
        (
            batch.core_rate >= BATCH_GOAL,
            f"batch: {batch.core_rate:,.0f} events by CPU second (goal {BATCH_GOAL:,})",
        ),
        (
            single_share >= SINGLE_SHARE_GOAL,
            f"single: {single_share:.0%} of the plain producer (goal {SINGLE_SHARE_GOAL:.0%})",
        ),
        (
            batch_share >= BATCH_SHARE_GOAL,
            f"batch: {batch_share:.0%} of the plain producer (goal {BATCH_SHARE_GOAL:.0%})",
        ),
        (counts_agree, "every event answered 202 is in the topic, once"),
        (single.failed == 0 and batch.failed == 0, "no request failed"),
    ]
    print(f"  the bound is {bound.core_rate / plain_single.core_rate:.0%} of the plain producer")
    for met, what in checks:
        print(f"  {'met   ' if met else 'MISSED'} {what}")
    print(f"  ({os.cpu_count()} cores, load average {load_average:.1f})")
    return 0 if all(met for met, _ in checks) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.ingestion", description=__doc__)
    parser.add_argument("--seconds", type=int, default=8, help="of load for each figure")
    parser.add_argument("--serve", choices=("bare", "raw", "checked"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        serve_peer(chosen.serve, chosen.port)
        return 0
    return measure(chosen.seconds)


if __name__ == "__main__":
    sys.exit(main())
