"""Answers by vLLM: an engine in a process of its own, for as long as a stage has answers written.

The base never changes while a LoRA is trained, so the engine loads it once and is given each
adapter as files. Its process ends with the stage, and with it all memory that it took.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from services.training.generation import GenerationSettings
from services.training.trainers import processes
from services.training.trainers.job import (
    CannotTrain,
    Progress,
    Stage,
    write_json,
)
from shared.contracts.recipes import GenerationName
from shared.vllm_environment import vllm_environment

COMMAND = (sys.executable, "-m", "services.training.trainers.engine")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can be told as the largest."""
POLL_S = 1.0
CHUNK = 128
"""Most prompts that the engine is asked at a time, so that a long evaluation tells how far it is."""
LOG_TAIL = 1500
"""Characters of the engine's log that are looked through for its last lines."""
VERSIONS = "engine.json"
INSTEAD = "or set generation to transformers (RATCHET_TRAINING_GENERATION, or in the recipe)"


@dataclass(frozen=True)
class WrittenAnswers:
    """What an engine wrote, one entry a prompt."""

    ids: list[list[int]]
    """Tokens of each answer, the one that ended it included."""
    logprobs: list[list[float]]
    """Of each token, at the temperature that it was drawn at."""


def by_vllm(wanted: GenerationName, *, gpu: bool, four_bit: bool = False) -> bool:
    """Whether answers are written by vLLM.

    Args:
        wanted: The setting.
        gpu: Whether the trainer computes on one.
        four_bit: Whether the base is trained in four bits, by which vLLM would not write.

    Raises:
        CannotTrain: vLLM is asked for and cannot be had.

    """
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "auto":
        return gpu and installed and not four_bit and not processes.sharded()
    if wanted == "transformers":
        return False
    if not installed:
        raise CannotTrain(
            "generation: vllm is not installed in the ML environment; install "
            f"requirements/ml-cuda.txt (ml.txt without a GPU) there, {INSTEAD}"
        )
    if processes.sharded():
        raise CannotTrain(
            "generation: vllm cannot be given an adapter of which each process holds a part "
            f"(FSDP); train by DDP, {INSTEAD}"
        )
    return True


@dataclass(frozen=True)
class EnginePlan:
    """What an engine must be able to do.

    Args:
        base: Hub id or path.
        dtype: Torch's name of the weights' type.
        rank: Largest rank of an adapter.
        adapters: How many are in use at a time.
        max_length: Most tokens of a prompt with its answer.
        gpu: Whether there is one.

    """

    base: str
    dtype: str
    rank: int
    adapters: int
    max_length: int
    gpu: bool

    def request(self, settings: GenerationSettings) -> dict[str, Any]:
        """What the engine's process is told first."""
        return {
            "model": self.base,
            "dtype": self.dtype,
            "max_lora_rank": next((rank for rank in RANKS if rank >= self.rank), RANKS[-1]),
            # On CPU, vLLM's "no adapter" is the last slot: it must stay empty.
            "max_loras": self.adapters + 1,
            "max_model_len": self.max_length,
            **({"gpu_memory_utilization": settings.gpu_memory_share} if self.gpu else {}),
        }

    def environment(self, settings: GenerationSettings) -> dict[str, str]:
        """Environment of the engine's process."""
        own = vllm_environment(
            from_folder=Path(self.base).is_dir(),
            cpu=not self.gpu,
            kv_cache_gib=settings.kv_cache_gib,
        )
        if not self.gpu:
            own["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # One process, on a GPU too: what it started itself would outlive a kill.
        own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # vLLM would export spans wherever the service's own collector is named.
        own["OTEL_SDK_DISABLED"] = "true"
        return processes.environment_of_one() | own


@contextlib.contextmanager
def started(
    plan: EnginePlan,
    settings: GenerationSettings,
    folder: Path,
    waiting: Callable[[], None] = lambda: None,
    command: Sequence[str] = COMMAND,
) -> Iterator[AnswerEngine]:
    """An engine that is up; it ends with the context.

    Args:
        plan: What it must be able to do.
        settings: How long its start may take, and its memory.
        folder: The attempt's, for its log.
        waiting: Called about each second of its start.
        command: Its process.

    Raises:
        CannotTrain: it did not start in time, or ended; says why and what to do.

    """
    log = folder / f"engine-{processes.rank()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=plan.environment(settings),
            # A trainer that is killed would leave it running, with its memory.
            preexec_fn=partial(processes.die_with, os.getpid()),  # noqa: PLW1509
        )
    engine = AnswerEngine(process, log)
    try:
        up = engine.ask(plan.request(settings), within_s=settings.start_s, waiting=waiting)
        if processes.rank() == 0:
            write_json(folder / VERSIONS, up)
        yield engine
    finally:
        engine.end()


def used(folder: Path) -> dict[str, str]:
    """Packages by which an engine wrote answers in this folder; none where none did."""
    path = folder / VERSIONS
    return json.loads(path.read_bytes()) if path.exists() else {}


class AnswerEngine:
    """vLLM in a process of its own, asked by a line of JSON and answering by one."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._numbers: dict[str, int] = {}
        self._next = itertools.count(1)
        self._read = b""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        adapter: str,
        seed: str,
        max_new_tokens: int,
        temperature: float,
        ends: Collection[int],
        repetition_penalty: float = 1.0,
        note: Callable[[int], None] = lambda _: None,
    ) -> WrittenAnswers:
        """An answer to each prompt, drawn from the whole distribution.

        Args:
            prompts: Token ids of each.
            adapter: Folder of the LoRA; empty: the base. What is in a folder must not change.
            seed: Of all chance; the same answers come for the same one.
            max_new_tokens: Most tokens of an answer.
            temperature: Of sampling; at 0 the likeliest tokens.
            ends: Tokens that end an answer.
            repetition_penalty: Of the base's own settings.
            note: Hears how many answers are written, after each chunk.

        Raises:
            CannotTrain: the engine refuses the adapter or ended; says why and what to do.

        """
        if adapter and adapter not in self._numbers:
            # Never a number twice: vLLM would answer from what it kept of the first one.
            self._numbers[adapter] = next(self._next)
        written = WrittenAnswers([], [])
        for start in range(0, len(prompts), CHUNK):
            chunk = prompts[start : start + CHUNK]
            found = self.ask(
                {
                    "prompts": chunk,
                    "adapter": adapter,
                    "number": self._numbers.get(adapter, 0),
                    "seed": f"{seed}/{start}",
                    "max_tokens": max_new_tokens,
                    "temperature": temperature,
                    "ends": sorted(ends),
                    "repetition_penalty": repetition_penalty,
                }
            )
            written.ids.extend(found["ids"])
            written.logprobs.extend(found["logprobs"])
            note(len(chunk))
        return written

    def forget(self, adapter: str) -> None:
        """Drop an adapter that is not asked for again."""
        self.ask({"forget": self._numbers.pop(adapter)})

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        within_s: float | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The process's answer to a request.

        Args:
            request: What it is asked.
            within_s: Seconds that it may take; None: the trainer's own watch ends what hangs.
            waiting: Called about each second until then.

        Raises:
            CannotTrain: it refused, ended, or took longer.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = None if within_s is None else time.monotonic() + within_s
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._read:
            if select.select([pipe], [], [], POLL_S)[0]:
                more = os.read(pipe, 1 << 20)
                if not more:
                    raise self._ended()
                self._read += more
            elif deadline is not None and time.monotonic() > deadline:
                raise CannotTrain(
                    f"generation: vllm did not start within {within_s:g} s; raise start_s of "
                    f"RATCHET_TRAINING_GENERATION, {INSTEAD}; the end of its log: {self._tail()}"
                )
            else:
                waiting()
        line, _, self._read = self._read.partition(b"\n")
        found = json.loads(line)
        if "error" in found:
            raise CannotTrain(
                f"generation: vllm refuses: {found['error']}; mend that, {INSTEAD}; whole log: "
                f"{self._log.name} of the attempt"
            )
        return found

    def end(self) -> None:
        """End the process and wait until its memory is given back."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _ended(self) -> CannotTrain:
        status = self._process.wait()
        return CannotTrain(
            f"generation: vllm ended with status {status}; give it less memory "
            f"(gpu_memory_share or kv_cache_gib of RATCHET_TRAINING_GENERATION), {INSTEAD}; the "
            f"end of its log: {self._tail()}"
        )

    def _tail(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return " | ".join(text[-LOG_TAIL:].strip().splitlines()[-4:])


def rank_of(adapter: str) -> int:
    """The largest rank of an adapter's matrices."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_bytes())
    return max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)


def told(progress: Progress, stage: Stage) -> Callable[[], None]:
    """Notes of a stage that waits for its engine."""
    return partial(progress.prepare, stage, "starting vLLM", 0)
