"""What a process that computes on CPU is told of memory and threads, beside other processes."""

from __future__ import annotations

CPU_ENVIRONMENT = {
    # Threads that spin while they wait would take the cores from the others.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc would give every large tensor back to the kernel and fetch its pages anew: a third of
    # the CPU time of a small model's training.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""Environment variables; glibc and OpenMP read them when a process starts, and only then."""
