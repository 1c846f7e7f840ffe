"""What browser tests wait for on the voting page."""

from __future__ import annotations

from playwright.sync_api import Page, expect


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
