"""Runs a command that must not outlive whoever started this: when stdin closes, it is told to stop.

A pipe closes however its holder ends, SIGKILL included, so a test run that dies takes its stack
along. (PR_SET_PDEATHSIG would follow the starting *thread*, which may end long before.)
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

_STOP_S = 90.0


def main() -> int:
    """Runs the command in `sys.argv` and returns its exit status."""
    # Told to stop itself, it passes that on; the command ends in its own order.
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
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
