"""`ratchet --version`: version and revision of the command."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from shared.revision import VERSION, code_revision

ROOT = Path(__file__).parents[2]


def print_version(asked: bool) -> None:
    """Print version and revision, and end the command."""
    if asked:
        revision = code_revision(os.environ.get("RATCHET_CODE_REVISION", ""), ROOT)
        typer.echo(f"ratchet {VERSION} (revision {revision})")
        raise typer.Exit
