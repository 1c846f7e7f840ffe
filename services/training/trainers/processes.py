"""Processes of one training: several where `accelerate launch` started them, else one.

The environment says which one this is; torch.distributed is asked by the trainers alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TypeVar

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before any fork, in which another thread may hold the loader
LAUNCHED = (
    "RANK",
    "WORLD_",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
)
"""How the variables begin by which a launcher tells a process which one it is."""


def die_with(parent: int) -> bool:
    """Have this process end with its parent; False where that is not the parent any more."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def environment_of_one() -> dict[str, str]:
    """The environment of a process outside the launched ones, which must not wait for them.

    It sees the GPU of the process that starts it and no other.
    """
    alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    if count() > 1:
        local, seen = os.environ.get("LOCAL_RANK", "0"), os.environ.get("CUDA_VISIBLE_DEVICES")
        mine = [local] if seen is None else seen.split(",")[int(local) :]
        alone["CUDA_VISIBLE_DEVICES"] = next(iter(mine), "")
    return alone


def rank() -> int:
    """Number of this process; 0 is the first, which writes what all made."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def keep_one_device() -> None:
    """Hide all GPUs from a single process but the first that it sees; before torch is loaded.

    Hugging Face's trainer would divide batches among them (DataParallel), each as large as a
    recipe's batch.
    """
    if count() == 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.partition(",")[0]


def sharded() -> bool:
    """Whether each process holds a part of the base only (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        import torch
        from accelerate.state import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def of_first(value: T) -> T:
    """The first process's value, which all processes get; all must ask."""
    if count() == 1:
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]
