"""`python -m deploy.local`: up, down, status, logs."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.processes import read
from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, OWN_ENGINE, STARTER_ENGINE, prepare_starter

_FOLLOW_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except StackError as error:
        print(f"stack: ERROR: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"stack: ERROR: {options.run_dir} is no use as a run directory: {error}; "
            "name another by RUN_DIR or --run-dir",
            file=sys.stderr,
        )
    return 1


def _interval(text: str) -> str:
    """An interval of Prometheus."""
    if not re.fullmatch(r"[1-9][0-9]*(ms|s|m|h)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no interval such as 500ms, 5s or 1m")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=main.__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path(".run/stack"))
    commands = parser.add_subparsers(required=True, metavar="up|down|status|logs")

    up = commands.add_parser("up", help="start what does not run, wait until it is ready")
    up.add_argument("services", nargs="*", help="only these and what they need (default: all)")
    up.add_argument("--ports", choices=("fixed", "free"), default="fixed")
    up.add_argument("--processes", type=Path, help="a process file that adds or changes processes")
    up.add_argument(
        "--scrape-interval",
        type=_interval,
        default=os.environ.get("RATCHET_SCRAPE_INTERVAL", "5s"),
        help="of Prometheus (default: RATCHET_SCRAPE_INTERVAL, else 5s)",
    )
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="stop the stack; its data stay for the next up")
    down.add_argument(
        "--delete-data", action="store_true", help="delete Kafka's log, adapters, datasets"
    )
    down.set_defaults(run=_down)

    commands.add_parser("status", help="what runs and where").set_defaults(run=_status)

    logs = commands.add_parser("logs", help="the end of the logs")
    logs.add_argument("services", nargs="*", help="only these (default: all)")
    logs.add_argument("-n", "--lines", type=int, default=10)
    logs.add_argument("-f", "--follow", action="store_true", help="go on showing new lines")
    logs.set_defaults(run=_logs)
    return parser


def _up(options: argparse.Namespace) -> int:
    stack = Stack(
        options.run_dir,
        services=options.services or None,
        processes=read(options.processes) if options.processes else None,
        ports=options.ports,
        scrape_interval=options.scrape_interval,
        keep=True,
    )
    if "inference" in stack.services:
        suits = OWN_ENGINE
        if not os.environ.get(BASE_MODEL):
            os.environ[BASE_MODEL], suits = prepare_starter(_say).model, STARTER_ENGINE
        for name, value in suits.items():
            os.environ.setdefault(name, value)
    stack.up()
    _table(stack)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _down(options: argparse.Namespace) -> int:
    try:
        stack = Stack.attach(options.run_dir)
    except StackError:
        stack = Stack(options.run_dir)
    stack.down(delete_data=options.delete_data)
    staying = "logs stay" if options.delete_data else "logs and data stay"
    print(f"stack: down ({staying} in {stack.run_dir})")
    return 0


def _status(options: argparse.Namespace) -> int:
    stack = Stack.attach(options.run_dir)
    return 0 if _table(stack) else 1


def _table(stack: Stack) -> bool:
    """Prints a line for each process; true when all are ready."""
    all_ready = True
    seen = stack.seen()
    print(f"{'process':14}{'state':10}{'ready':7}{'pid':>8}{'up':>9}  address")
    for name in stack.services:
        if name not in seen:
            continue
        ready = stack.is_ready(name)
        all_ready = all_ready and ready
        address = " ".join(stack.address(port) for port in stack.ports_of(name))
        process = seen[name]
        print(
            f"{name:14}{process.state.lower():10}{'yes' if ready else 'no':7}"
            f"{process.pid or '–':>8}{process.up_s:>8}s  {address}"
        )
    return all_ready


def _logs(options: argparse.Namespace) -> int:
    stack = Stack.attach(options.run_dir)
    names = options.services or stack.services
    sizes: dict[str, int] = {}
    for name in names:
        path = stack.log(name)
        sizes[name] = path.stat().st_size if path.exists() else 0
        print(f"── {name} ({path})\n{stack.log_end(name, options.lines)}")
    try:
        while options.follow:
            for name in names:
                sizes[name] = _show_new(name, stack.log(name), sizes[name])
            time.sleep(_FOLLOW_S)
    except KeyboardInterrupt:
        return 130
    return 0


def _show_new(name: str, path: Path, shown: int) -> int:
    """Prints what a log gained; returns how far it is shown now."""
    if not path.exists():
        return 0
    size = path.stat().st_size
    if size < shown:  # rotated
        shown = 0
    with path.open("rb") as file:
        file.seek(shown)
        new = file.read(size - shown).decode(errors="replace")
    for line in new.splitlines():
        print(f"{name:12} {line}")
    return size
