"""The voting page in Chromium."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import APIResponse, Browser, BrowserContext, Page, Route, expect

from services.feedback.voting.plan import VotingPlan
from shared.contracts.events.feedback import FeedbackSubmitted, FeedbackWithdrawn
from shared.contracts.events.votes import Choice, VoteCast
from tests.support.browser import failed, ready, said
from tests.support.voting import VotingHarness, voting_server
from tests.support.waiting import wait_until
from tests.support.xss import PAYLOADS

Picture = Callable[[Page, str], None]
KEYS = {"1": Choice.left, "2": Choice.right, "3": Choice.tie, "4": Choice.both_bad}
PHONE = {"width": 360, "height": 740}
RICH = (
    "# A heading\n\nA paragraph with **bold** words and `code`.\n\n"
    "- " + "averyverylongword" * 12 + "\n\n"
    "```python\nprint('" + "x" * 200 + "')\n```\n\n"
    "| a | b | c | d |\n|:-|-:|-|-|\n| "
    + "cell"
    * 30
    + " | 2 | 3 | [link](https://example.com) |\n\n"
    "> quoted\n\n1. one\n2. two\n"
)


def votes(voting: VotingHarness) -> list[VoteCast]:
    """All votes, in no order: each comparison's are in a partition of its own."""
    return [event for event in voting.events() if isinstance(event, VoteCast)]


class TestVoting:
    def test_a_vote_by_mouse_counts_and_then_names_the_versions(
        self, page: Page, voting: VotingHarness, picture: Picture
    ) -> None:
        assert "assistant-v1" not in page.content()
        picture(page, "voting-ready")
        page.click("text=Answer 1 is better")
        said(page, "Your vote counts: answer 1 is better")
        (vote,) = votes(voting)
        assert vote.choice is Choice.left
        assert vote.user_id == "rosa"
        expect(page.locator("#left .version")).to_have_text(vote.left.version)
        expect(page.locator("#right .version")).to_have_text(vote.right.version)
        expect(page.locator("#today")).to_have_text("1")
        for button in page.locator("[data-choice]").all():
            expect(button).to_be_disabled()
        expect(page.locator("#next")).to_be_focused()
        picture(page, "voting-voted")

    @pytest.mark.parametrize("key", KEYS)
    def test_the_key_printed_on_a_button_votes(
        self, page: Page, voting: VotingHarness, key: str
    ) -> None:
        button = page.locator(f"[data-choice={KEYS[key].value}]")
        expect(button.locator("kbd")).to_have_text(key)
        page.keyboard.press(key)
        said(page, "Your vote counts")
        assert [vote.choice for vote in votes(voting)] == [KEYS[key]]
        expect(button).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("n")
        ready(page)
        expect(button.locator("kbd")).to_have_text(key)

    def test_buttons_are_reached_and_pressed_by_tab_and_enter(
        self, page: Page, voting: VotingHarness
    ) -> None:
        page.locator("button[data-choice=left]").focus()
        page.keyboard.press("Tab")
        expect(page.locator("button[data-choice=right]")).to_be_focused()
        page.keyboard.press("Enter")
        said(page, "Your vote counts: answer 2")
        assert [vote.choice for vote in votes(voting)] == [Choice.right]

    def test_keys_rest_while_typing_with_modifiers_and_when_switched_off(
        self, page: Page, voting: VotingHarness
    ) -> None:
        page.locator("#own").press_sequentially("1 2 3")
        page.locator("#main").focus()
        page.keyboard.press("Control+1")
        page.locator("#keys").uncheck()
        page.locator("#main").focus()
        page.keyboard.press("1")
        page.locator("#keys").check()
        page.locator("#main").focus()
        page.keyboard.press("4")
        said(page, "both are bad")
        assert [vote.choice for vote in votes(voting)] == [Choice.both_bad]

    def test_a_tap_votes(self, browser: Browser, voting: VotingHarness) -> None:
        context = browser.new_context(has_touch=True, viewport=PHONE)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(voting.invite())
        ready(page)
        page.tap("text=Tie")
        said(page, "Your vote counts: tie")
        context.close()
        assert [vote.choice for vote in votes(voting)] == [Choice.tie]

    def test_a_double_click_and_a_held_key_count_once(
        self, page: Page, voting: VotingHarness
    ) -> None:
        page.dblclick("text=Answer 1 is better")
        said(page, "Your vote counts")
        page.keyboard.press("n")
        ready(page)
        for _ in range(5):
            page.keyboard.down("2")
        page.keyboard.up("2")
        said(page, "Your vote counts")
        assert sorted(vote.choice for vote in votes(voting)) == [Choice.left, Choice.right]
        expect(page.locator("#today")).to_have_text("2")

    def test_a_dead_button_stays_dead(self, page: Page, voting: VotingHarness) -> None:
        page.keyboard.press("1")
        said(page, "Your vote counts")
        page.locator("[data-choice=right]").dispatch_event("click")
        page.keyboard.press("3")
        page.keyboard.press("n")
        ready(page)
        assert len(votes(voting)) == 1

    def test_undo_takes_the_vote_back_and_the_comparison_stays_closed(
        self, page: Page, voting: VotingHarness
    ) -> None:
        page.keyboard.press("1")
        said(page, "Your vote counts")
        expect(page.locator("#undo-left")).to_contain_text("s)")
        page.keyboard.press("u")
        said(page, "taken back")
        expect(page.locator("#today")).to_have_text("0")
        expect(page.locator("#history")).to_contain_text("(taken back)")
        expect(page.locator("#undo")).to_be_hidden()
        expect(page.locator("[data-choice=left]")).to_be_disabled()
        assert sum(isinstance(event, FeedbackWithdrawn) for event in voting.events()) == 1

    def test_the_history_undoes_too_until_the_minute_is_over(
        self, page: Page, voting: VotingHarness
    ) -> None:
        for key in ("1", "2"):
            ready(page)
            page.keyboard.press(key)
            said(page, "Your vote counts")
            page.keyboard.press("n")
        ready(page)
        undo = page.locator("#history button")
        expect(undo).to_have_count(2)
        undo.last.click()
        said(page, "taken back")
        voting.clock.advance(61)
        expect(undo).to_have_count(1)
        undo.click()
        failed(page, "A vote can be taken back for a minute")

    def test_a_correction_follows_the_vote(self, page: Page, voting: VotingHarness) -> None:
        expect(page.locator("#left .correction")).to_be_hidden()
        page.keyboard.press("2")
        said(page, "Your vote counts")
        page.click("text=Correct answer 1")
        page.fill("#left-correction", "Better so.")
        page.click("#left .correction button")
        said(page, "Your correction of answer 1 is stored")
        (event,) = [event for event in voting.events() if isinstance(event, FeedbackSubmitted)]
        (vote,) = votes(voting)
        assert event.trace_id == vote.left.trace_id

    def test_a_question_of_one_s_own(self, page: Page, voting: VotingHarness) -> None:
        page.fill("#own", "Why do cats purr?")
        page.select_option("#own-category", "creative")
        page.click("text=Ask both versions")
        expect(page.locator("#question")).to_have_text("Why do cats purr?")
        expect(page.locator("#category")).to_have_text("creative")
        expect(page.locator("#own")).to_have_value("")
        page.locator("#main").focus()
        page.keyboard.press("1")
        said(page, "Your vote counts")
        assert votes(voting)[0].context.category == "creative"
        expect(page.locator("#coverage li").filter(has_text="creative")).to_contain_text("1")

    def test_a_vote_counts_while_the_progress_is_still_on_its_way(
        self, page: Page, voting: VotingHarness
    ) -> None:
        held: list[tuple[Route, APIResponse]] = []

        def hold(route: Route) -> None:
            held.append((route, route.fetch()))

        page.route("**/api/progress", hold)
        page.reload()
        ready(page)
        page.keyboard.press("1")
        said(page, "Your vote counts")
        expect(page.locator("#today")).to_have_text("1")
        ((route, before_the_vote),) = held
        with page.expect_response("**/api/progress"):
            route.fulfill(response=before_the_vote)
        page.keyboard.press("n")
        ready(page)
        assert len(votes(voting)) == 1
        expect(page.locator("#today")).to_have_text("1")

    def test_the_next_comparison_is_there_without_a_wait(
        self, page: Page, voting: VotingHarness
    ) -> None:
        wait_until(lambda: len(voting.router.asked) == 4, "the reserve")
        voting.router.gate.clear()
        first = page.locator("#question").text_content()
        page.keyboard.press("1")
        said(page, "Your vote counts")
        page.keyboard.press("n")
        ready(page)
        assert page.locator("#question").text_content() != first


class TestComingBack:
    def test_a_reload_shows_the_same_comparison(self, page: Page) -> None:
        before = page.locator("#comparison").inner_text()
        page.reload()
        ready(page)
        assert page.locator("#comparison").inner_text() == before

    def test_the_back_button_offers_no_second_vote(self, page: Page, voting: VotingHarness) -> None:
        question = page.locator("#question").text_content()
        page.keyboard.press("1")
        said(page, "Your vote counts")
        page.goto(f"{voting.url}/vote/static/voting.css")
        page.go_back()
        ready(page)
        assert page.locator("#question").text_content() != question
        assert len(votes(voting)) == 1

    def test_two_tabs_show_one_comparison_which_counts_once(
        self, page: Page, context: BrowserContext, voting: VotingHarness
    ) -> None:
        other = context.new_page()
        other.goto(f"{voting.url}/vote/")
        ready(other)
        assert other.locator("#question").text_content() == page.locator("#question").text_content()
        page.keyboard.press("1")
        said(page, "Your vote counts")
        other.keyboard.press("2")
        failed(other, "already has your vote, perhaps from another tab")
        other.click("#retry")
        ready(other)
        assert [vote.choice for vote in votes(voting)] == [Choice.left]

    def test_the_same_vote_in_a_second_tab_counts_once(
        self, page: Page, context: BrowserContext, voting: VotingHarness
    ) -> None:
        other = context.new_page()
        other.goto(f"{voting.url}/vote/")
        ready(other)
        for tab in (page, other):
            tab.keyboard.press("1")
            said(tab, "Your vote counts")
        assert len(votes(voting)) == 1
        expect(other.locator("#today")).to_have_text("1")

    def test_an_expired_session_keeps_what_was_typed_and_says_what_to_do(
        self, page: Page, context: BrowserContext, voting: VotingHarness
    ) -> None:
        page.fill("#own", "A question I typed")
        context.clear_cookies()
        page.locator("#main").focus()
        page.keyboard.press("1")
        failed(page, "Your session is over")
        expect(page.locator("#own")).to_have_value("A question I typed")
        assert votes(voting) == []
        page.click("#retry")
        expect(page.locator("h1")).to_have_text("Sign in to vote")
        page.goto(voting.invite())
        ready(page)

    def test_signing_out_shows_how_to_come_back(self, page: Page) -> None:
        page.click("text=Sign out")
        expect(page.locator("h1")).to_have_text("Sign in to vote")


class TestTrouble:
    def test_a_slow_engine_is_said_and_waited_for(
        self, context: BrowserContext, voting: VotingHarness
    ) -> None:
        voting.router.gate.clear()
        page = context.new_page()
        page.clock.install()
        page.goto(voting.invite())
        said(page, "Getting the next comparison")
        expect(page.locator("[data-choice=left]")).to_be_disabled()
        expect(page.locator("#comparison")).to_be_hidden()
        page.clock.fast_forward(9_000)
        said(page, "This takes longer than usual")
        voting.router.gate.set()
        ready(page)
        said(page, "Two answers are ready")

    def test_a_failing_engine_is_said_with_a_remedy_that_works(
        self, context: BrowserContext, voting: VotingHarness, picture: Picture
    ) -> None:
        voting.router.status = 500
        page = context.new_page()
        page.goto(voting.invite())
        failed(page, "The model could not answer")
        picture(page, "voting-failed")
        voting.router.status = 200
        page.click("#retry")
        ready(page)
        expect(page.locator("#error")).to_be_hidden()

    def test_without_a_network_nothing_is_lost(
        self, page: Page, context: BrowserContext, voting: VotingHarness
    ) -> None:
        context.set_offline(True)
        page.keyboard.press("1")
        failed(page, "The server cannot be reached")
        context.set_offline(False)
        page.click("#retry")
        said(page, "Your vote counts: answer 1 is better")
        assert len(votes(voting)) == 1

    def test_an_empty_queue_asks_for_a_question(self, context: BrowserContext) -> None:
        with voting_server(VotingPlan()) as voting:
            page = context.new_page()
            page.goto(voting.invite())
            failed(page, "The queue has no prompts")
            page.fill("#own", "Hello?")
            page.click("text=Ask both versions")
            ready(page)
            expect(page.locator("#error")).to_be_hidden()


class TestSafety:
    def test_no_payload_runs_or_reaches_another_host(
        self, page: Page, voting: VotingHarness
    ) -> None:
        hosts: set[str] = set()
        dialogs: list[str] = []
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        for number, payload in enumerate(PAYLOADS):
            voting.router.text = payload
            page.fill("#own", f"{number} {payload}")
            page.click("text=Ask both versions")
            expect(page.locator("#question")).to_contain_text(f"{number} ")
            ready(page)
            # What a payload would need: its element, its handler, its link.
            risky = page.locator(
                "main :is(script, img, svg, iframe, object, embed, video, form, style, link, base, "
                "meta, [onerror], [onload], [onfocus], [ontoggle], [autofocus])"
            )
            assert risky.count() == 0, payload
            for link in page.locator("main a").all():
                assert (link.get_attribute("href") or "").startswith(("http://", "https://"))
        assert page.evaluate("window.hit") is None
        assert dialogs == []
        assert hosts == {voting.url.split("/")[2]}
        assert page.url == f"{voting.url}/vote/"

    def test_the_page_breaks_none_of_its_own_policies(
        self, context: BrowserContext, voting: VotingHarness
    ) -> None:
        voting.router.text = RICH
        page, complaints = context.new_page(), list[str]()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(voting.invite())
        ready(page)
        page.keyboard.press("1")
        said(page, "Your vote counts")
        assert complaints == []

    def test_an_inline_script_would_not_run(self, page: Page) -> None:
        page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
            " document.body.append(s); }"
        )
        assert page.evaluate("window.hit") is None


class TestLooks:
    @pytest.mark.parametrize("width", [360, 768, 1920])
    def test_nothing_scrolls_sideways(
        self, browser: Browser, voting: VotingHarness, picture: Picture, width: int
    ) -> None:
        voting.router.text = RICH
        context = browser.new_context(viewport={"width": width, "height": 740})
        page = context.new_page()
        page.goto(voting.invite())
        ready(page)
        page.keyboard.press("1")
        said(page, "Your vote counts")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        picture(page, f"voting-{width}")
        context.close()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 800}], ids=str)
    def test_axe_finds_nothing_serious(
        self,
        browser: Browser,
        voting: VotingHarness,
        picture: Picture,
        scheme: str,
        viewport: dict[str, int],
    ) -> None:
        voting.router.text = RICH
        context = browser.new_context(color_scheme=scheme, viewport=viewport)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(f"{voting.url}/vote/")
        check(page, "signed out")
        page.goto(voting.invite())
        ready(page)
        check(page, "ready")
        page.keyboard.press("1")
        said(page, "Your vote counts")
        page.click("text=Correct answer 1")
        check(page, "voted")
        picture(page, f"voting-{scheme}-{viewport['width']}")
        voting.router.status = 500
        page.fill("#own", "Hello?")
        page.click("text=Ask both versions")
        failed(page, "The model could not answer")
        check(page, "failed")
        context.close()

    def test_dark_is_dark_and_light_is_light(self, browser: Browser, voting: VotingHarness) -> None:
        grounds = []
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(voting.invite())
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds.append(sum(int(part) for part in ground[4:-1].split(",")))
            context.close()
        light, dark = grounds
        assert light > 600 > 150 > dark


def check(page: Page, state: str) -> None:
    """Axe-core finds nothing serious or critical on the page as it is."""
    found = [
        f"{violation['id']}: {node['html'][:120]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert found == [], state
