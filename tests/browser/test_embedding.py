"""The example's product page in Chromium: a comparison in a frame of another origin, and marks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web
from playwright.sync_api import BrowserContext, Page, expect

from examples import product_page
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.votes import VoteCast
from tests.support.browser import ready, said
from tests.support.voting import VotingHarness, voting_server


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, VotingHarness]]:
    """The address of the example's server, and the service behind it."""
    started: list[str] = []
    up, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(product_page.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        started.append(f"http://localhost:{runner.addresses[0][1]}")
        up.set()
        await asyncio.to_thread(stop.wait)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert up.wait(60)
    with voting_server(embed_origins=(started[0],)) as harness:
        monkeypatch.setattr(product_page, "RATCHET", harness.url)
        yield started[0], harness
    stop.set()
    thread.join(30)


def test_a_vote_in_the_frame_is_told_to_the_product_s_page(
    product: tuple[str, VotingHarness], context: BrowserContext
) -> None:
    address, harness = product
    page = context.new_page()
    page.goto(address)
    frame = page.frame_locator("iframe")
    expect(frame.locator("button[data-choice=left]")).to_be_enabled()
    expect(frame.locator("header")).to_be_hidden()
    frame.locator("button[data-choice=left]").click()
    expect(page.locator("#said")).to_have_text("You chose left.")
    page.click("#up")
    expect(page.locator("#said")).to_have_text("Thank you.")
    events = harness.events()
    assert [one.user_id for one in events if isinstance(one, VoteCast)] == [product_page.USER]
    assert [one.type for one in events if isinstance(one, FeedbackSubmitted)] == [
        FeedbackType.thumbs_up
    ]
    assert context.cookies() == []


def test_a_selected_part_is_marked_and_sent(page: Page, voting: VotingHarness) -> None:
    voting.router.text = "😀 Good words. Bad words."
    page.fill("#own", "Say words.")
    page.click("text=Ask both versions")
    expect(page.locator("#question")).to_have_text("Say words.")
    ready(page)
    page.keyboard.press("Escape")
    page.locator("#main").focus()
    page.keyboard.press("1")
    said(page, "Your vote counts")
    page.click("text=Mark parts of answer 1")
    page.locator("#left-marking").evaluate("box => box.setSelectionRange(15, 18)")
    page.click("#left [data-liked=false]")
    expect(page.locator("#left .marks li")).to_contain_text("Disliked: Bad")
    page.click("#left [data-marks]")
    said(page, "Your marks on answer 1 are stored")
    (correction,) = [one for one in voting.events() if isinstance(one, FeedbackSubmitted)]
    assert correction.value.corrected == "😀 Good words."  # type: ignore[union-attr]
