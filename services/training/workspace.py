"""Workspace of a job on this machine: resume state, dataset, reward model and attempts.

It only saves work: a job whose folder is lost starts again from its request.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from services.training.ai_opinion import RESULT as AI_RESULT
from services.training.errors import DiskFull, JobsFolderTaken
from services.training.trainers.job import TrainerJob, write_json
from shared.contracts.events.base import OptionalName


class ResumeState(BaseModel):
    """What must stay the same when the job resumes after a kill."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    job_id: str
    dataset_id: OptionalName = ""
    version: OptionalName = ""


class Workspace:
    """The folder of one job under `<data>/jobs`."""

    def __init__(self, jobs: Path, job_id: str) -> None:
        self.folder = jobs / hashlib.sha256(job_id.encode()).hexdigest()[:24]
        self._job_id = job_id

    @property
    def data(self) -> Path:
        """The dataset's files."""
        return self.folder / "data"

    @property
    def judge(self) -> Path:
        """The evaluation's reward model, made once a job."""
        return self.folder / "judge"

    @property
    def cases(self) -> Path:
        """The failure cases that the job's candidates are asked."""
        return self.folder / "cases.jsonl"

    @property
    def nearest(self) -> Path:
        """The held-out rows nearest to the parent's policy, which perplexity is measured on."""
        return self.folder / "nearest.jsonl"

    @property
    def predecessor_pairs(self) -> Path:
        """The pairs that the last published reward model learned from."""
        return self.folder / "predecessor.jsonl"

    def attempt(self, number: int) -> Path:
        """The folder of the attempt, counted from 1."""
        path = self.folder / f"attempt-{number}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def attempts(self) -> list[Path]:
        """Folders of the attempts so far, the first one first."""
        found = self.folder.glob("attempt-*")
        return sorted(found, key=lambda path: int(path.name.removeprefix("attempt-")))

    def fresh(self, name: str) -> Path:
        """An empty folder of the job's."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def begin(self, folder: Path, job: TrainerJob) -> None:
        """Write an attempt's job; what other parameters made before a kill is dropped.

        So is what another release of the trainers measured, which may lack what this one asks for.
        A training goes on from that release's checkpoints. Threads and niceness change nothing in a
        result, so they may differ.
        """
        judge = job.model_dump(
            mode="json", include={"base", "reward", "seed", "data", "predecessor"}
        )
        attempt = job.model_dump(mode="json", exclude={"threads", "nice"})
        for place, content in ((self.judge, judge), (folder, attempt)):
            mark, known = place / "made-from.json", {**content, "trainers": trainers_digest()}
            found = _read(mark)
            if found == known:
                continue
            trained = (
                place == folder and isinstance(found, dict) and found.items() >= content.items()
            )
            if trained:
                _drop_measures(folder, job)
            else:
                shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True, exist_ok=True)
            write_json(mark, known)
        write_json(folder / "job.json", job.model_dump(mode="json"))

    def load(self) -> ResumeState:
        """The resume state of before a kill; a broken file counts as nothing."""
        try:
            return ResumeState.model_validate_json((self.folder / "resume.json").read_bytes())
        except (OSError, ValidationError):
            return ResumeState(job_id=self._job_id)

    def save(self, resume: ResumeState) -> None:
        """Keep the resume state."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "resume.json", resume.model_dump())

    def tidy(self) -> None:
        """Drop what an ended job needs no more: checkpoints, and the adapters' copies stay."""
        for path in self.folder.glob("*/checkpoints"):
            shutil.rmtree(path, ignore_errors=True)


@functools.cache
def trainers_digest() -> str:
    """SHA-256 of what trains and measures, as this release has it."""
    digest = hashlib.sha256()
    for package in ("trainers", "measures"):
        for path in sorted((Path(__file__).parent / package).glob("*.*")):
            digest.update(f"{package}/{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _drop_measures(folder: Path, job: TrainerJob) -> None:
    """Drop an attempt's results but its method's own: with them goes what says they are done."""
    for stage in job.stages:
        if stage != job.method:
            (folder / f"{stage}.json").unlink(missing_ok=True)
    (folder / AI_RESULT).unlink(missing_ok=True)


@contextlib.contextmanager
def take(data_dir: Path) -> Iterator[None]:
    """Hold the data directory's folder of training for this process alone.

    Raises:
        JobsFolderTaken: another process has it, which would delete this one's jobs; names the remedy.

    """
    folder = data_dir.resolve() / "training"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobsFolderTaken(
                f"{folder} belongs to another running replica of training; give each its own "
                "RATCHET_DATA_DIR"
            ) from None
        yield


def require_free(jobs: Path, bytes_wanted: int) -> None:
    """Refuse to begin, or to go on, on a disk that would be full before the training ends.

    Raises:
        DiskFull: names the folder, what is free and what to do.

    """
    jobs.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(jobs).free
    if free < bytes_wanted:
        raise DiskFull(
            f"disk: {free / 2**20:.0f} MiB are free below {jobs}, {bytes_wanted / 2**20:.0f} MiB "
            "are wanted (RATCHET_TRAINING_MIN_FREE_BYTES); free some, or lower "
            "RATCHET_TRAINING_KEEP_JOBS"
        )


def prune(jobs: Path, *, keep: int, open_jobs: Collection[str]) -> None:
    """Delete the oldest folders of ended jobs beyond `keep`."""
    kept = {Workspace(jobs, job_id).folder.name for job_id in open_jobs}
    ended = [path for path in jobs.glob("*") if path.is_dir() and path.name not in kept]
    ended.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in ended[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def drop_of_datasets(jobs: Path, dataset_ids: Collection[str]) -> None:
    """Delete the folders of jobs on these datasets; a job that is not ended begins anew."""
    for path in jobs.glob("*/resume.json"):
        with contextlib.suppress(OSError, ValidationError):
            resume = ResumeState.model_validate_json(path.read_bytes())
            if resume.dataset_id in dataset_ids:
                shutil.rmtree(path.parent, ignore_errors=True)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
