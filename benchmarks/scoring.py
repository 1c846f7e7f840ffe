"""`python -m benchmarks.scoring [--base PATH]`: answers scored one by one and in a batch.

A real inference service that wants API keys, without an engine, gives a reward model with random weights
on a base, the starter model by default. It is asked over one connection for the same answers twice: each in
a request of its own, one after another, and all in one request. Printed is by kind of answers how many are
answered a second, and the CPU milliseconds an answer of the service with its scoring process, which has one
thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.proxies import OTHER_CORE, cpu_seconds, process
from benchmarks.reinforcement import pairs
from benchmarks.training_stages import ML_PYTHON, ROOT, starter
from deploy.local.ports import HOST, free_ports
from deploy.local.stack import Stack
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.versions import DatasetRef, RewardRecord, reward_key
from shared.contracts.topics import API_KEYS, VERSIONS
from shared.kafka.producer import KafkaLog
from shared.kafka.security import KafkaConnection
from shared.registry import adapters
from shared.registry.api_keys import make_key

MODEL = "benchmark"
ANSWERS, ROUNDS = 64, 5
TIMEOUT_S = 600.0


class Speed(NamedTuple):
    """Of one way to ask, over all answers."""

    seconds: float
    cpu_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scoring", description=__doc__)
    parser.add_argument("--base", type=Path, help="another base's folder")
    parser.add_argument("--answers", type=int, default=ANSWERS, help="of one batch, 256 at most")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args(arguments)
    base = str(chosen.base.resolve()) if chosen.base else starter()["model"]
    print(
        f"{chosen.answers} answers, medians of {chosen.rounds} rounds (least and greatest ratio)\n\n"
        "| answers | characters | one by one, answers/s | batch, answers/s | ratio "
        "| CPU ms an answer | in the batch | ratio |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name:
        for kind, (characters, rounds) in measured(Path(name), base, chosen.answers, chosen.rounds):
            print(f"| {kind} | {characters} {row_of(chosen.answers, rounds)}", flush=True)
    return 0


def row_of(answers: int, rounds: Sequence[tuple[Speed, Speed]]) -> str:
    """Cells of a kind of answers: rates and CPU times, each with the ratio of single to batch."""
    cells = ""
    for field, said in ((0, rate_of), (1, cpu_of)):
        single, batch = (statistics.median(each[way][field] for each in rounds) for way in (0, 1))
        ratios = [one[field] / whole[field] for one, whole in rounds]
        cells += (
            f"| {said(single, answers)} | {said(batch, answers)} "
            f"| {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) "
        )
    return cells + "|"


def rate_of(seconds: float, answers: int) -> str:
    return f"{answers / seconds:.1f}"


def cpu_of(seconds: float, answers: int) -> str:
    return f"{1000 * seconds / answers:.2f}"


def kinds_of_answers(count: int) -> dict[str, list[dict[str, Any]]]:
    """Answers by kind; all of one conversation have what came before in common."""
    rows = pairs("train", count // 2, random.Random(1))
    two = [
        {"messages": row["messages"], "completion": row[side]}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    turns = [*two[0]["messages"]]
    for one in two[2:12:2]:
        turns += [{"role": "assistant", "content": one["completion"]}, *one["messages"]]
    return {
        "two a prompt": two,
        "two a prompt, of three words": [
            one | {"completion": " ".join(one["completion"].split()[:3])} for one in two
        ],
        "to one conversation": [one | {"messages": turns} for one in two],
        "to one conversation, of three words": [
            one | {"messages": turns, "completion": " ".join(one["completion"].split()[:3])}
            for one in two
        ],
    }


def measured(
    folder: Path, base: str, count: int, rounds: int
) -> Iterator[tuple[str, tuple[int, list[tuple[Speed, Speed]]]]]:
    """Kinds of answers, each with its mean characters, and one by one and batch of each round."""
    made = folder / "made"
    command = [str(ML_PYTHON), "-m", "benchmarks.random_reward", str(made), base]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=TIMEOUT_S)
    ports = free_ports(["stub"])
    engine = f"http://{HOST}:{ports['stub']}"
    env = {
        "RATCHET_PROFILE": "production",
        "RATCHET_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
        "RATCHET_ADAPTER_ROOTS": str(folder / "store"),
        "RATCHET_INFERENCE_ENGINE_EXTERNAL": "true",
        "OMP_NUM_THREADS": "1",
    }
    stub = [sys.executable, "-m", "benchmarks.stub_engine", "--port", str(ports["stub"])]
    inference = {"inference": {"env": {"RATCHET_INFERENCE_ENGINE_URL": engine}}}
    with (
        process(stub, folder / "stub.log", OTHER_CORE),
        Stack(
            folder / "stack",
            services=["inference"],
            processes=inference,
            env=env,
            ports="free",
            say=lambda _: None,
        ) as stack,
    ):
        secret = asyncio.run(publish(stack.address("kafka"), base, made, folder / "store"))
        headers = {"authorization": f"Bearer {secret}"}
        with httpx.Client(
            base_url=stack.url("inference"), headers=headers, timeout=TIMEOUT_S
        ) as client:
            asked = ScoringService(client, stack.pid("inference"))
            asked.wait()
            for kind, rows in kinds_of_answers(count).items():
                ways = [[row] for row in rows], [rows]
                asked.speed([rows[:1], rows])
                turns = [(asked.speed(ways[0]), asked.speed(ways[1])) for _ in range(rounds)]
                yield kind, (len(json.dumps(rows)) // len(rows), turns)


class ScoringService:
    """The service, over one connection."""

    def __init__(self, client: httpx.Client, pid: int) -> None:
        self._client = client
        self._pid = pid

    def wait(self) -> None:
        """Until key and reward model are known, and the model is loaded."""
        deadline = time.monotonic() + TIMEOUT_S
        row = {"messages": [{"role": "user", "content": "?"}], "completion": "!"}
        asked = {"model": MODEL, "items": [row]}
        while not (answer := self._client.post("/v1/score", json=asked)).is_success:
            if time.monotonic() > deadline:
                sys.exit(f"POST /v1/score: {answer.text}")
            time.sleep(0.1)

    def speed(self, requests: Sequence[Sequence[dict[str, Any]]]) -> Speed:
        """What requests take, one after another."""
        bodies = [json.dumps({"model": MODEL, "items": rows}).encode() for rows in requests]
        began, cpu_s = time.monotonic(), cpu_seconds(self._pid)
        for body in bodies:
            self._client.post(
                "/v1/score", content=body, headers={"content-type": "application/json"}
            ).raise_for_status()
        return Speed(time.monotonic() - began, cpu_seconds(self._pid) - cpu_s)


async def publish(bootstrap: str, base: str, made: Path, store: Path) -> str:
    """A reward model on record, and the secret of a key that may ask for scores."""
    now = datetime.now(UTC)
    place = (store / MODEL).as_uri()
    record = RewardRecord(
        name=f"{MODEL}-reward-v1",
        model=MODEL,
        base=base,
        adapter_uri=place,
        adapter_sha256=adapters.publish(made, place),
        dataset=DatasetRef(dataset_id="none", uri="none", sha256="0", rows=1),
        hyperparameters={},
        seed=0,
        code_revision="benchmark",
        metrics={},
        job_id="benchmark",
        created_at=now,
    )
    new = make_key({"tenant": "default", "scopes": (Permission.infer,)}, now)
    log = KafkaLog(KafkaConnection(bootstrap), source="/ratchet/benchmark")
    await log.start()
    try:
        await log.publish(
            API_KEYS, key=new.issued.key_id, event=new.issued, event_id=new.issued.key_id
        )
        key = reward_key(record.name)
        await log.publish(VERSIONS, key=key, event=record, event_id=key)
    finally:
        await log.stop()
    return new.secret


if __name__ == "__main__":
    sys.exit(main())
