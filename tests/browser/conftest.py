"""Debian's Chromium, driven by Playwright: one browser a session, one server and context a test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.voting import VotingHarness, voting_server

PROGRAMS = ("chromium", "google-chrome")
PATIENCE_MS = 30_000
SCREENSHOTS = Path(os.environ.get("RATCHET_SCREENSHOTS", ".run/screenshots"))
"""Where a test leaves its pictures; CI keeps them as artefacts."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    assert program, f"none of {', '.join(PROGRAMS)} is installed: run make setup"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def voting() -> Iterator[VotingHarness]:
    with voting_server() as harness:
        yield harness


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context()
    made.set_default_timeout(PATIENCE_MS)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, voting: VotingHarness) -> Page:
    """The page of a rater who came by an invite, with two answers to vote on."""
    opened = context.new_page()
    opened.goto(voting.invite())
    opened.wait_for_selector("button[data-choice=left]:enabled")
    return opened
