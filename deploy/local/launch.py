"""Becomes the process that a JSON file describes: {"argv", "env", "cwd"}.

Supervisord starts this instead of the command itself: its configuration format can carry neither
every environment value nor every argument unharmed, and a changed file takes effect at a restart.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Replaces this process; returns only by exiting when the program is missing."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs start-up time
        launched = json.load(file)
    os.chdir(launched["cwd"])
    argv = launched["argv"]
    try:
        os.execvpe(argv[0], argv, launched["env"])
    except FileNotFoundError:
        sys.exit(f"{argv[0]} is not installed: run make setup")


if __name__ == "__main__":
    main()
