"""Debian's Chromium, driven by Playwright: one browser a module, one server and context a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.support.browser import chromium, ready
from tests.support.console import ConsoleHarness
from tests.support.voting import VotingHarness, voting_server

PATIENCE_MS = 30_000
SCREENSHOTS = Path(os.environ.get("RATCHET_SCREENSHOTS", ".run/screenshots"))
"""Where tests leave their pictures."""

expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chromium takes its time on a busy machine."""
    for item in items:
        if "browser" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not the session's: beside the event loop that it keeps running in this thread, no asynchronous
    # test could run.
    with chromium() as started:
        yield started


@pytest.fixture
def voting() -> Iterator[VotingHarness]:
    with voting_server() as harness:
        yield harness


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleHarness]:
    made = ConsoleHarness(tmp_path)
    made.call(made.start())
    yield made
    made.close()


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
    ready(opened)
    return opened


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Leaves a picture of the page among the artefacts."""

    def take(page: Page, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return take
