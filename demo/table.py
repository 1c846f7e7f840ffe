"""The live table: redrawn in place on a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.steps import Demo

REDRAW_S = 0.5
LINE_EVERY_S = 5.0


class Screen:
    """Shows a demo while it runs. `say` prints a line that stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """A line with the time since the beginning."""
        self._console.print(f"[{self.elapsed_s():5.0f} s] {text}", markup=False, highlight=False)

    def elapsed_s(self) -> float:
        """Seconds since the screen was made."""
        return time.monotonic() - self._started

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    async def run(self, demo: Demo, stop: asyncio.Event) -> None:
        """Shows the demo's state until `stop`."""
        told = 0.0
        while not stop.is_set():
            if self._live is not None:
                self._live.update(picture(demo, self.elapsed_s()))
            elif self.elapsed_s() - told >= LINE_EVERY_S:
                told = self.elapsed_s()
                self.say(line(demo))
            await asyncio.sleep(REDRAW_S)


def picture(demo: Demo, elapsed_s: float) -> Group:
    """The table of versions, with what trains and what rolls out below."""
    tally, sight = demo.users.tally, demo.watch.sight
    table = Table(title=f"Ratchet, {elapsed_s:.0f} s: {demo.step}", title_justify="left")
    for name in ("version", "state", "answers", "thumbs", "ratings", "corrections", "thumbs up"):
        table.add_column(name, justify="left" if name in ("version", "state") else "right")
    thumbs = liked_shares(demo)
    for version in sorted({name for name, _ in tally.requests if name} | set(sight.versions)):
        state = str(sight.versions.get(version, {}).get("state", ""))
        given = {kind: tally.feedback[version, kind] for kind in ("rating", "text_correction")}
        both = tally.feedback[version, "thumbs_up"] + tally.feedback[version, "thumbs_down"]
        share = f"{thumbs[version]:.0%}" if version in thumbs else ""
        table.add_row(
            version,
            state,
            str(tally.requests[version, "ok"]),
            str(both),
            str(given["rating"]),
            str(given["text_correction"]),
            share,
        )
    return Group(table, Text(progress(demo)))


def line(demo: Demo) -> str:
    """The same in one line."""
    tally = demo.users.tally
    thumbs = ", ".join(f"{name} {share:.0%}" for name, share in sorted(liked_shares(demo).items()))
    return (
        f"{tally.total_requests} answers, {tally.total_feedback} feedback, "
        f"{len(demo.users.seen.votes)} votes; recent thumbs up: {thumbs or '-'}; {progress(demo)}"
    )


def progress(demo: Demo) -> str:
    """What is being trained and rolled out now, in words."""
    sight = demo.watch.sight
    votes = demo.users.seen.votes
    decided = sum(vote.choice in ("left", "right") and not vote.panel for vote in votes)
    panel = sum(vote.choice in ("left", "right") and bool(vote.panel) for vote in votes)
    words = [f"pairs from votes {decided} of {demo.settings.pairs}, judge's {panel}"]
    for run in sight.runs.values():
        if run["phase"] not in ("succeeded", "rejected", "failed"):
            name = run["version"] or run["method"]
            words.append(f"{name} {run['phase']} {run['progress']:.0%}")
    rollout = sight.current
    if rollout is not None:
        words.append(
            f"{rollout['candidate']} {rollout['phase']} at {rollout['weight'] / 100:.0f} % "
            f"({rollout['step_name']})"
        )
    return "; ".join(words)


def liked_shares(demo: Demo) -> dict[str, float]:
    """Share of thumbs up among each version's recent thumbs."""
    counts: dict[str, list[int]] = {}
    for version, liked in demo.users.seen.liked:
        entry = counts.setdefault(version, [0, 0])
        entry[0] += liked
        entry[1] += 1
    return {version: liked / total for version, (liked, total) in counts.items()}
