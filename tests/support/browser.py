"""Debian's Chromium, and what browser tests wait for on the voting page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, expect, sync_playwright

_PROGRAMS = ("chromium", "google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. While it is there, an event loop runs in this thread."""
    program = next((found for name in _PROGRAMS if (found := shutil.which(name))), None)
    assert program, f"none of {', '.join(_PROGRAMS)} is installed: run make setup"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def ready(page: Page) -> None:
    """Both answers are there to be voted on."""
    expect(page.locator("button[data-choice=left]")).to_be_enabled()


def said(page: Page, text: str) -> None:
    """The live region says so."""
    expect(page.locator("#status")).to_contain_text(text)


def failed(page: Page, text: str) -> None:
    """The page says what is wrong, and what to do."""
    expect(page.locator("#error-what")).to_contain_text(text)
    expect(page.locator("#error-remedy")).not_to_be_empty()
