"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="The model's name.")]
DEFAULT_MODEL = "assistant"
