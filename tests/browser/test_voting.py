"""The voting page in Chromium."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from shared.contracts.events.votes import Choice, VoteCast
from tests.support.voting import VotingHarness


def votes(voting: VotingHarness) -> list[VoteCast]:
    return [event for event in voting.events() if isinstance(event, VoteCast)]


def test_a_vote_by_mouse_counts_and_then_names_the_versions(
    page: Page, voting: VotingHarness
) -> None:
    assert "assistant-v1" not in page.content()
    page.click("text=Answer 1 is better")
    expect(page.locator("#status")).to_contain_text("Your vote counts")
    (vote,) = votes(voting)
    assert vote.choice is Choice.left
    assert vote.user_id == "rosa"
    assert page.locator("#left .version").text_content() == vote.left.version
    assert page.locator("#right .version").text_content() == vote.right.version
    expect(page.locator("#today")).to_have_text("1")
    for button in page.locator("[data-choice]").all():
        expect(button).to_be_disabled()
