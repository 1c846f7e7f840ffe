"""The rollout console in a browser: what people see of a rollout, and what they can do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import SCREENSHOTS
from tests.support.console import ConsoleHarness


@pytest.fixture
def opened(context: BrowserContext, console: ConsoleHarness) -> Iterator[Page]:
    """The console; anything that the browser complains about fails the test."""
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_viewport_size({"width": 1_100, "height": 1_000})
    page.goto(console.url)
    expect(page.locator("#live")).to_contain_text("Live")
    yield page
    assert wrong == []


def picture(page: Page, name: str) -> None:
    """Leave a picture of what a window shows among the artefacts."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_people_see_the_difference_with_its_interval_and_every_decision(
    console: ConsoleHarness, opened: Page
) -> None:
    console.call(console.go_on(30, errors=0.01))
    expect(opened.locator("#sentence")).to_contain_text("v2 gets 20 % of the users")
    figures = opened.locator("#intervals figure")
    expect(figures.first).to_contain_text("Error rate")
    expect(figures.nth(1)).to_contain_text("Satisfaction")
    label = figures.first.locator("svg").get_attribute("aria-label") or ""
    assert re.search(r"difference -?\d+\.\d+ %, between -\d", label), label
    expect(opened.locator("#criteria")).to_contain_text("of 1,000")
    expect(opened.locator("#decisions li").first).to_contain_text("v2 went from 0 % to 20 %")
    expect(opened.locator("#versions")).to_contain_text("canary")
    picture(opened, "rollout-console")
    opened.emulate_media(color_scheme="dark")
    picture(opened, "rollout-console-dark")
    opened.set_viewport_size({"width": 390, "height": 844})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    picture(opened, "rollout-console-phone")


def test_a_rollback_shows_without_a_reload(console: ConsoleHarness, opened: Page) -> None:
    expect(opened.locator("#sentence")).to_contain_text("20 %")
    console.call(console.go_on(30, errors=0.06))
    expect(opened.locator("#sentence")).to_contain_text("rolled back; everybody is on stable")
    expect(opened.locator("#decisions li").first).to_contain_text("v2 was taken back from 20 %")
    expect(opened.locator("#criteria .breached").first).to_be_visible()
    expect(opened.get_by_role("button", name="Start again")).to_be_visible()
    picture(opened, "rollout-console-rollback")


def test_a_person_aborts_by_keyboard_and_says_why(console: ConsoleHarness, opened: Page) -> None:
    opened.get_by_role("button", name="Abort").focus()
    opened.keyboard.press("Enter")
    expect(opened.locator("#ask")).to_be_visible()
    opened.keyboard.press("Escape")
    expect(opened.locator("#ask")).not_to_be_visible()
    assert console.rollout().weight == 2_000
    opened.keyboard.press("Enter")
    opened.keyboard.type("<b>wrong</b> data")
    opened.keyboard.press("Enter")
    expect(opened.locator("#sentence")).to_contain_text("aborted by a person")
    expect(opened.locator("#decisions li").first).to_contain_text("<b>wrong</b> data")
    assert console.rollout().weight == 0
    outcome = opened.locator("#facts div").filter(has=opened.get_by_text("Outcome", exact=True))
    expect(outcome.locator("dd")).to_have_text("aborted by a person; everybody is on stable")
    for part in ("#facts", "#voters", "#intervals", "#gains"):
        expect(opened.locator(part)).not_to_contain_text(re.compile("yet|still|needed|being read"))
