"""Trainer subprocess: started, watched, stopped with the job, restarted after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.training.errors import TrainerFailed, TrainerGaveUp
from services.training.trainers.job import BUSY, FAILURE, GIVEN_UP, StageProgress, noted_steps
from services.training.workspace import require_free
from shared.cpu_environment import CPU_ENVIRONMENT

log = structlog.get_logger(__name__)

OnProgress = Callable[[StageProgress], Awaitable[None]]

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.5
STOP_S = 10.0
BUSY_S = 300.0
"""Longest wait for an earlier trainer to leave the folder: one that was killed with its service may
take a while to give back its memory."""
BUSY_PAUSE_S = 2.0
"""Between two looks at a folder that is in use."""
LOG_TAIL = 1500
"""Characters of the trainer's log that an error quotes."""


@dataclass(frozen=True)
class TrainerProcess:
    """How to run a trainer.

    Args:
        python: Interpreter of the ML environment.
        threads: Threads of the numeric libraries; 0 leaves it to them.
        stall_s: Longest time without progress before it is ended and started again.
        restarts: How often it may be started again for one attempt.
        accelerate: Configuration of `accelerate launch`, for several processes; empty: one.
        min_free_bytes: Free on the folder's disk before it is started again.

    """

    python: str
    threads: int
    stall_s: float
    restarts: int
    accelerate: str = ""
    min_free_bytes: int = 0

    async def run(self, folder: Path, on_progress: OnProgress, alive: Callable[[], None]) -> None:
        """Do the stages of `<folder>/job.json`; goes on from checkpoints after a crash.

        A folder in which another trainer works is waited for, which is no restart.

        Args:
            folder: The attempt's folder.
            on_progress: Hears of each step that was noted.
            alive: Called while the process is watched, at least every few seconds.

        Raises:
            TrainerGaveUp: another start would end the same.
            TrainerFailed: it ended without a result more often than it may, or the folder
                stayed in use for longer than `BUSY_S`.
            DiskFull: it ended without a result and too little is free.

        """
        status = 0
        for start in range(self.restarts + 1):
            status = await self._run_alone(folder, on_progress, alive)
            if status == 0:
                return
            if status == GIVEN_UP:
                raise TrainerGaveUp((folder / FAILURE).read_text(encoding="utf-8"))
            log.warning("trainer.ended", folder=folder.name, status=status, start=start + 1)
            require_free(folder, self.min_free_bytes)
        raise TrainerFailed(
            f"the trainer ended {self.restarts + 1} times without a result, last with status "
            f"{status}; the end of its log: {_tail(folder / 'trainer.log')}"
        )

    def command(self, folder: Path) -> list[str]:
        """What does the stages of a folder: one trainer, or the launcher of several."""
        own = [str(folder), str(os.getpid())]
        if not self.accelerate:
            return [self.python, "-m", "services.training.trainers.run", *own]
        configuration = str(Path(self.accelerate).resolve())
        return [self.python, "-m", "services.training.trainers.launch", *own, configuration]

    async def _run_alone(
        self, folder: Path, on_progress: OnProgress, alive: Callable[[], None]
    ) -> int:
        deadline = time.monotonic() + BUSY_S
        while (status := await self._run_once(folder, on_progress, alive)) == BUSY:
            if time.monotonic() >= deadline:
                raise TrainerFailed(
                    f"{folder}: another trainer worked there for more than {BUSY_S:.0f} s; end it"
                )
            log.warning("trainer.folder_busy", folder=folder.name)
            await asyncio.sleep(BUSY_PAUSE_S)
        return status

    async def _run_once(
        self, folder: Path, on_progress: OnProgress, alive: Callable[[], None]
    ) -> int:
        with (folder / "trainer.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *self.command(folder),
                cwd=ROOT,
                env=trainer_environment(self.threads),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        reader = _ProgressReader(folder / "progress.jsonl")
        try:
            moved = time.monotonic()
            while process.returncode is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await process.wait()
                alive()
                for line in reader.read():
                    moved = time.monotonic()
                    await on_progress(line)
                if time.monotonic() - moved > self.stall_s:
                    log.error("trainer.stalled", folder=folder.name, limit_s=self.stall_s)
                    break
        finally:
            await end_process(process)
        status = process.returncode
        assert status is not None
        return status


def trainer_environment(threads: int) -> dict[str, str]:
    """Environment of a process of the ML environment; 0 threads leaves their number to it."""
    added = {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **CPU_ENVIRONMENT,
    }
    if threads:
        added |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **added}


class _ProgressReader:
    """Reads the lines of progress.jsonl that are new and whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def read(self) -> list[StageProgress]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole, newline, _ = data.rpartition(b"\n")
        self._position += len(whole) + len(newline)
        return noted_steps(whole)


async def end_process(process: asyncio.subprocess.Process) -> None:
    """End a process with its children, first politely."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()


def _tail(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return " | ".join(text[-LOG_TAIL:].strip().splitlines()[-8:])
