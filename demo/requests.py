"""Asking the stack for things an operator asks for: training runs by the command line, faults."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from demo.errors import StepFailed
from demo.settings import ROOT
from demo.users import Vote
from shared.http.client import request_within

COMMAND_TIMEOUT_S = 60.0
HTTP_TIMEOUT_S = 10.0


async def ratchet(
    environment: Mapping[str, str], *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S
) -> str:
    """Runs the `ratchet` command against the stack and returns what it prints.

    Raises:
        StepFailed: it ended with another status than 0, or not in time; carries its words.

    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli",
        *arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise StepFailed(f"ratchet {' '.join(arguments)}: no end in {timeout_s:.0f} s") from None
    if process.returncode:
        words = (err or out).decode().strip()[-800:]
        raise StepFailed(f"ratchet {' '.join(arguments)}: {words}")
    return out.decode()


def write_pairs(path: Path, votes: Sequence[Vote], *, inverted: bool, most: int) -> int:
    """Writes up to `most` decided votes as JSONL pairs, the wrong way round if asked.

    Votes of the judge's panel stay out. Returns how many there are.
    """
    rows: list[str] = []
    for vote in votes:
        if len(rows) == most:
            break
        if vote.panel or vote.choice not in ("left", "right") or vote.left == vote.right:
            continue
        chosen, rejected = vote.left, vote.right
        if (vote.choice == "right") != inverted:
            chosen, rejected = rejected, chosen
        row = {
            "messages": [{"role": "user", "content": vote.prompt}],
            "chosen": chosen,
            "rejected": rejected,
        }
        rows.append(json.dumps(row, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(rows)


async def set_fault(admin_url: str, version: str, share: float) -> None:
    """Tells the fault proxy which version fails from now on, and how often."""
    fault = {"version": version, "share": share}
    async with (
        aiohttp.ClientSession() as session,
        request_within(HTTP_TIMEOUT_S, session, "PUT", f"{admin_url}/fault", json=fault) as answer,
    ):
        if answer.status != 200:
            raise StepFailed(f"fault proxy: {answer.status} {await answer.text()}")


async def fetch(url: str) -> str:
    """A page as text."""
    async with (
        aiohttp.ClientSession() as session,
        request_within(HTTP_TIMEOUT_S, session, "GET", url) as answer,
    ):
        answer.raise_for_status()
        return await answer.text()
