"""`make demo`: the whole circle on real components, with its figures and its exit status.

Exit 0 where every step did what it promises, 1 where one did not, 130 where it was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import summary
from demo.errors import StepFailed
from demo.places import places
from demo.settings import PLAY_DIR, DemoSettings
from demo.steps import Demo
from demo.table import Screen
from demo.tastes import population
from deploy.local.errors import StackError
from deploy.local.stack import Stack
from deploy.local.starter import BASE_MODEL, STARTER_ENGINE, prepare_starter
from deploy.starter.model import Starter

GIVE_UP_S = 1500.0
"""Longest the steps may take together; each has deadlines of its own."""
INTERRUPTED = 130
PLAIN_WIDTH = 150
"""Columns of the closing table in a log file."""


def main() -> int:
    """Runs the demo and returns its exit status."""
    settings = _settings()
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Screen(Console(soft_wrap=True))
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    again = settings.play and settings.complete.exists()
    seconds: dict[str, float] = {}
    stack: Stack | None = None
    status, ready = 1, False
    try:
        screen.say("the starter model (trained once, about 75 s, then cached)")
        starter = prepare_starter(screen.say)
        seconds["starter model"] = screen.elapsed_s()
        screen.say(f"starting the stack in {settings.run_dir}")
        stack = Stack(
            settings.run_dir,
            processes=settings.processes(),
            env={
                **settings.environment(),
                **({} if os.environ.get("MODEL") else STARTER_ENGINE),
                BASE_MODEL: starter.model,
            },
            ports="free" if settings.free_ports else "fixed",
            scrape_interval="1s",
            keep=settings.keep,
            fresh=not again,
            say=screen.say,
        )
        stack.up()
        ready = True
        seconds["stack"] = screen.elapsed_s() - seconds["starter model"]
        screen.say(f"the stack is ready after {screen.elapsed_s():.0f} s")
        status = (
            0 if again else asyncio.run(_run(settings, stack, starter, screen, console, seconds))
        )
        if status == 0 and settings.play:
            settings.complete.touch()
    except (StackError, StepFailed) as error:
        console.print(f"demo: {error}", style="red", markup=False)
    except KeyboardInterrupt:
        console.print("demo: interrupted", style="red")
        status = INTERRUPTED
    finally:
        if stack is not None:
            unfinished = settings.play and status == INTERRUPTED
            if stack.started and (unfinished or not settings.keep):
                screen.say("stopping the stack")
                stack.down(delete_data=not again)
            elif stack.started or ready:
                _say_where(settings, places(stack) if ready else [], console)
    return status


def _say_where(settings: DemoSettings, where: Sequence[str], console: Console) -> None:
    for place in where:
        console.print(place, markup=False, highlight=False, soft_wrap=True)
    console.print(f"the stack stays up: make down RUN_DIR={settings.run_dir} ends it")


async def _run(
    settings: DemoSettings,
    stack: Stack,
    starter: Starter,
    screen: Screen,
    console: Console,
    seconds: dict[str, float],
) -> int:
    demo = Demo(settings, stack, population(settings.seed), screen.say)
    demo.facts.seconds |= seconds
    stop, failed = asyncio.Event(), ""
    background = [
        asyncio.create_task(demo.watch.run(stop)),
        asyncio.create_task(demo.users.run(stop)),
    ]
    try:
        with screen:
            background.append(asyncio.create_task(screen.run(demo, stop)))
            failed = await _steps(demo, background, starter, screen)
    finally:
        stop.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*background, return_exceptions=True), 10.0)
        await demo.users.close()
    summary.closing_table(demo, console)
    summary.write(settings.summary, demo, failed=failed, elapsed_s=screen.elapsed_s())
    console.print(f"summary: {settings.summary}; logs: {settings.run_dir / 'logs'}")
    if failed:
        console.print(f"FAILED: {failed}", style="red", markup=False)
        for problem in list(demo.users.seen.problems)[-5:]:
            console.print(f"  seen by a client: {problem}", markup=False)
        return 1
    console.print(f"all steps done in {screen.elapsed_s():.0f} s", style="green")
    return 0


async def _steps(
    demo: Demo, background: list[asyncio.Task[None]], starter: Starter, screen: Screen
) -> str:
    """Does the steps one by one; returns what failed, or nothing."""

    async def all_steps() -> None:
        for name, step in demo.steps(starter.model, starter.demonstrations):
            demo.step = name
            screen.say(f"step {name}")
            started = time.monotonic()
            try:
                await step()
            finally:
                demo.facts.seconds[name] = time.monotonic() - started
            screen.say(f"step {name}: done in {demo.facts.seconds[name]:.0f} s")

    work = asyncio.create_task(all_steps())
    # A watcher or the users breaking down must end the run, not leave it waiting.
    await asyncio.wait([work, *background], timeout=GIVE_UP_S, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        broken = [task.exception() for task in background if task.done() and not task.cancelled()]
        return f"step {demo.step}: {broken[0] if broken else 'no end in time'!r}"
    error = work.exception()
    if error is None:
        return ""
    if isinstance(error, StepFailed):
        return f"step {demo.step}: {error}"
    return f"step {demo.step}: {type(error).__name__}: {error}"


def _settings() -> DemoSettings:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", DemoSettings.seed)))
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    parser.add_argument(
        "--play",
        action="store_true",
        help="leave the stack running, and start it from its data the next time",
    )
    parser.add_argument("--free-ports", action="store_true", help="take any free ports")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--summary", type=Path, default=DemoSettings.summary)
    parser.add_argument(
        "--feedback-share", type=float, default=DemoSettings.feedback_share, metavar="SHARE"
    )
    given: dict[str, Any] = vars(parser.parse_args())
    if not 0 < given["feedback_share"] <= 1:
        parser.error("--feedback-share: must lie in (0, 1]")
    given["keep"] |= given["play"]
    given["run_dir"] = given["run_dir"] or (PLAY_DIR if given["play"] else DemoSettings.run_dir)
    return DemoSettings(**given)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
