"""Runs a command that must not outlive whoever started this: when stdin closes, it is told to stop.

A pipe closes however its holder ends, SIGKILL included, so a test run that dies takes its stack
along. (PR_SET_PDEATHSIG would follow the starting *thread*, which may end long before.)
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import FrameType

_STOP_S = 90.0


def main() -> int:
    """Runs the command in `sys.argv` and returns its exit status."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def pass_on(_signal: int, _frame: FrameType | None) -> None:
        child.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_owner() -> None:
        while sys.stdin.buffer.read(1):
            pass
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=follow_owner, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
