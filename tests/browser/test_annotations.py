"""The annotation page in Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from services.feedback.voting.invites import Rater
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackType
from shared.contracts.events.votes import VoteCast
from tests.support.browser import failed, said
from tests.support.voting import VotingHarness, voting_server
from tests.support.xss import PAYLOADS
from tests.unit.feedback.annotation.test_page import ANNOTATED, ITEM

Picture = Callable[[Page, str], None]
TURNS = [
    {"role": "user", "content": "I take **aspirin** each day."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "May I take ibuprofen too?"},
]


@pytest.fixture
def queue() -> Iterator[VotingHarness]:
    with voting_server(ANNOTATED) as harness:
        yield harness


def add(queue: VotingHarness, *items: dict[str, Any]) -> None:
    answer = httpx.post(f"{queue.url}/v1/annotations", json={"items": items}, timeout=60)
    assert answer.status_code == 201, answer.text


def opened(queue: VotingHarness, context: BrowserContext, name: str = "rosa") -> Page:
    page = context.new_page()
    page.goto(queue.invite(Rater("default", name)))
    page.goto(f"{queue.url}/vote/annotations")
    return page


def test_a_conversation_is_labelled_by_key_and_the_next_item_comes(
    queue: VotingHarness, context: BrowserContext, picture: Picture
) -> None:
    conversation = {key: value for key, value in ITEM.items() if key != "prompt"}
    add(queue, conversation | {"messages": TURNS, "guidelines": "Ask a **doctor** first."})
    add(queue, {"item_id": "r1", "prompt": "Write a slogan.", "kind": "rating"})
    page = opened(queue, context)
    said(page, "An item is ready")
    expect(page.locator("#turns li")).to_have_count(3)
    expect(page.locator("#turns strong")).to_have_text("aspirin")
    expect(page.locator("#guidelines strong").first).to_have_text("doctor")
    expect(page.locator("#category")).to_have_text("medical · high stakes")
    assert "assistant-v1" not in page.content()
    picture(page, "annotation")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    page.keyboard.press("1")
    expect(page.locator("#asked")).to_have_text("How good is the answer?")
    page.click("text=Correct answer 1")
    page.fill("#correction-1", "Fresh bread, every day.")
    page.click("[data-label='4']")
    failed(page, "Nothing waits for your label")
    expect(page.locator("#mine")).to_have_text("2")
    events = queue.events()
    assert [event.user_id for event in events if isinstance(event, VoteCast)] == ["rosa"]
    kinds = {event.type for event in events if isinstance(event, FeedbackSubmitted)}
    assert kinds == {FeedbackType.rating, FeedbackType.text_correction}


def test_no_payload_runs_and_axe_finds_nothing_serious(
    queue: VotingHarness, context: BrowserContext
) -> None:
    hostile = "\n\n".join(PAYLOADS)[:4_000]
    answers = [one | {"text": hostile} for one in ITEM["answers"]]  # type: ignore[union-attr]
    add(queue, ITEM | {"prompt": hostile, "answers": answers, "guidelines": hostile})
    page, complaints = context.new_page(), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(queue.invite())
    page.click("text=Label items")
    said(page, "An item is ready")
    risky = "main :is(script, img, svg, iframe, form, style, [onerror], [onload], [autofocus])"
    assert page.locator(risky).count() == 0
    assert page.evaluate("window.hit") is None
    assert [one for one in complaints if "Content Security Policy" in one] == []
    found = [
        violation["id"]
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert found == []


def test_two_people_and_an_adjudicator_settle_an_item(
    queue: VotingHarness, context: BrowserContext
) -> None:
    add(queue, ITEM)
    page = opened(queue, context)
    for name, text in (("rosa", "Yes."), ("otto", "Ask your doctor.")):
        page.goto(queue.invite(Rater("default", name)))
        page.goto(f"{queue.url}/vote/annotations")
        said(page, "An item is ready")
        first = page.locator("#answer-1 .text").inner_text().strip() == text
        page.keyboard.press("1" if first else "2")
        failed(page, "waits for your label")
    page.goto(queue.invite(Rater("default", "ann")))
    page.goto(f"{queue.url}/vote/annotations")
    expect(page.locator("#adjudication")).to_contain_text("Answer 1 is better (1)")
    page.keyboard.press("3")
    failed(page, "Nothing waits")
    (listed,) = httpx.get(f"{queue.url}/v1/annotations").json()["items"]
    assert (listed["state"], listed["outcome"]) == ("settled", "tie")
