"""Processes of one training: several where `accelerate launch` started them, else one.

The environment says which one this is; torch.distributed is asked by the trainers alone.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process; 0 is the first, which writes what all made."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharded() -> bool:
    """Whether each process holds a part of the base only (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        import torch
        from accelerate.state import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
