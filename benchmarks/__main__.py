"""`python -m benchmarks [name …]`: each benchmark in a process of its own, one after the other."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "router",
    "ingestion",
    "aggregator",
    "aggregator_history",
    "judge",
    "reinforcement",
    "training",
    "active_learning",
    "datasets",
    "ranking",
)


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; 1 where one missed a goal or failed."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there is {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed: list[str] = []
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nmissed a goal or failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
