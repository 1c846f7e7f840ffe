"""Stylesheet of every page that a service shows; each service serves it beside its own."""

from __future__ import annotations

from pathlib import Path

LOOK = Path(__file__).with_name("look.css")
