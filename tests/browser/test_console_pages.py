"""The console's pages beside rollouts in a browser: all in one start of the service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from prometheus_client import CollectorRegistry

from services.rollout.console.files import PAGES
from services.rollout.steps import abort
from shared.contracts.events.audit import ActionAudited
from shared.contracts.events.erasures import ErasureRequested
from shared.contracts.events.quality import QualityWindow
from shared.contracts.events.training import (
    RunPhase,
    TrainingMethod,
    TrainingProgress,
    TrainingRequested,
)
from shared.contracts.topics import (
    API_KEYS,
    AUDIT,
    ERASURES,
    FEEDBACK,
    INTERACTIONS,
    QUALITY,
    TRAINING_JOBS,
    TRAINING_RUNS,
)
from shared.kafka.deadletters import DeadLetters
from shared.kafka.log import Record, read_events
from shared.registry.api_keys import make_key
from tests.browser.conftest import PATIENCE_MS
from tests.browser.test_console import picture
from tests.support.aggregator import interaction
from tests.support.console import ConsoleHarness
from tests.support.rollouts import publish_pairs
from tests.unit.rollout.fakes import register, until_known

SERIOUS = {"serious", "critical"}
PHONE = 360


async def fill(console: ConsoleHarness) -> None:
    """Something for each page to show."""
    log, now = console.harness.log, console.harness.clock.now()
    job = TrainingRequested(
        job_id="job-1", model="m", method=TrainingMethod.dpo, actor="ann", requested_at=now
    )
    await log.publish(TRAINING_JOBS, key="job-1", event=job, event_id="job-1")
    for minute, done in enumerate((0.0, 0.25)):
        told = TrainingProgress(
            job_id="job-1",
            model="m",
            method=TrainingMethod.dpo,
            phase=RunPhase.training,
            progress=done,
            message="dpo: step 2 of 8",
            at=now + timedelta(minutes=minute),
        )
        await log.publish(TRAINING_RUNS, key="job-1", event=told, event_id=f"job-1:{minute}")
    letters = DeadLetters(log, service="feedback", redact=str, metrics=CollectorRegistry())
    bad = Record(FEEDBACK, 0, 3, "k", b'{"type":"<b>applause</b>"}', (("ce_type", b"x"),), 0)
    await letters.put(bad, "schema", "type: <b>applause</b> is not a known type")
    erasure = ErasureRequested(
        erasure_id="e-1", tenant="t", subjects=("0" * 64,), actor="key-1", requested_at=now
    )
    await log.publish(ERASURES, key="0" * 64, event=erasure, event_id="e-1")
    sums: dict[str, Any] = dict.fromkeys(QualityWindow.model_fields, 0)
    figures = {"interactions": 1000, "interactions_with_feedback": 80, "positive": 6, "negative": 4}
    day = QualityWindow.model_validate(
        sums | {"version": "v1", "window": "1d", "start": now, "partition": 0} | figures
    )
    await log.publish(QUALITY, key="v1", event=day, event_id="v1")
    await publish_pairs(log, "m", count=3, at=now, rejected="<b>no</b>")


async def put_prompts(console: ConsoleHarness, count: int) -> None:
    """Recorded requests that an evaluation asks again."""
    for number in range(count):
        event = interaction(f"t{number}", prompt=f"Where is parcel {number}?", model="m")
        await console.harness.log.publish(
            INTERACTIONS, key=event.trace_id, event=event, event_id=event.trace_id
        )


@pytest.fixture
def page(browser: Browser, console: ConsoleHarness) -> Iterator[Page]:
    context = browser.new_context(color_scheme="dark", viewport={"width": PHONE, "height": 740})
    context.set_default_timeout(PATIENCE_MS)
    made = context.new_page()
    wrong: list[str] = []
    made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    made.on("pageerror", lambda error: wrong.append(str(error)))
    yield made
    context.close()
    assert wrong == []


def opened(page: Page, console: ConsoleHarness, name: str) -> None:
    page.goto(f"{console.url}{name}")
    expect(page.locator("#live")).to_contain_text("Live")


def checked(page: Page, name: str) -> None:
    """Fits the window, and axe finds nothing serious."""
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE, name
    found = Axe().run(page).response["violations"]
    serious = [one["id"] for one in found if one["impact"] in SERIOUS]
    assert serious == [], name


def done(page: Page, path: str) -> None:
    """Enter in the dialog; the service does what was asked for."""
    with page.expect_response(lambda answer: answer.url.endswith(path)) as answer:
        page.keyboard.press("Enter")
    assert answer.value.ok, answer.value.text()


def test_every_page_fits_a_phone_by_night_empty_and_filled(
    page: Page, console: ConsoleHarness
) -> None:
    for name in PAGES:
        opened(page, console, name)
        expect(page.locator("nav a[aria-current]")).to_have_attribute("href", name)
        expect(page.locator("#list table, #list .empty").first).to_be_visible()
    console.call(fill(console))
    for name in PAGES:
        opened(page, console, name)
        opener = page.locator("#list .link").first
        if opener.count():
            opener.click()
            expect(page.locator("#detail h2")).to_be_visible()
        checked(page, name)
    assert page.locator("b").count() == 0, "what comes from the log is text"


def test_an_operator_issues_a_key_cancels_a_job_and_replays_a_letter(
    page: Page, console: ConsoleHarness
) -> None:
    console.call(fill(console))
    page.set_viewport_size({"width": 1_100, "height": 440})
    opened(page, console, "keys")
    expect(page.locator(".empty")).to_contain_text("No key")
    page.get_by_role("button", name="Issue a key").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("shop")
    page.get_by_label("infer").check()
    page.get_by_label("Why").fill("the shop opens")
    page.keyboard.press("Enter")
    expect(page.locator("#secret code")).to_contain_text("rk_")
    expect(page.locator("#list")).to_contain_text("shop")
    picture(page, "console-keys")
    page.reload()
    expect(page.locator("#list")).to_contain_text("shop")
    expect(page.locator("#secret")).to_be_empty()

    opened(page, console, "training")
    expect(page.locator("#list")).to_contain_text("25 %, 3 min left")
    picture(page, "console-training")
    page.get_by_role("button", name="Cancel job-1").click()
    page.keyboard.type("wrong data")
    done(page, "/cancel")

    opened(page, console, "dead-letters")
    page.get_by_role("button", name=f"Replay {FEEDBACK}/0/3").click()
    page.keyboard.type("the reader is mended")
    done(page, "/replay")

    async def reasons() -> list[str]:
        found = await read_events(console.harness.log, (AUDIT,), ActionAudited, timeout_s=60)
        return sorted(f"{one.action}: {one.reason}" for one in found)

    assert console.call(reasons()) == [
        "key.issued: the shop opens",
        "letters.replayed: the reader is mended",
    ]


def test_a_key_that_expired_is_renewed_or_removed(page: Page, console: ConsoleHarness) -> None:
    log, now = console.harness.log, console.harness.clock.now()
    ended = {"name": "shop", "tenant": "t", "scopes": ["infer"], "expires_at": now - timedelta(1)}
    old = make_key(ended, now - timedelta(days=9)).issued
    console.call(log.publish(API_KEYS, key=old.key_id, event=old, event_id=old.key_id))
    page.set_viewport_size({"width": 1_100, "height": 440})
    opened(page, console, "keys")
    expect(page.locator("#list")).to_contain_text("expired")
    assert not page.get_by_role("button", name=re.compile("Rotate|Revoke")).count()
    page.get_by_role("button", name=f"Renew {old.key_id}").click()
    page.get_by_label("Why").fill("the shop opens again")
    done(page, "/rotate")
    expect(page.locator("#secret code")).to_contain_text("rk_")
    expect(page.get_by_role("button", name=re.compile("Rotate key-"))).to_be_visible()
    page.get_by_role("button", name=f"Remove {old.key_id}").click()
    page.get_by_label("Why").fill("tidied up")
    done(page, "/revoke")
    expect(page.locator("#list")).not_to_contain_text("expired")
    expect(page.locator("#list")).to_contain_text("shop")


def test_an_operator_registers_settings_asks_for_a_training_and_erases_a_person(
    page: Page, console: ConsoleHarness
) -> None:
    console.call(fill(console))
    console.call(put_prompts(console, 10))
    page.set_viewport_size({"width": 1_100, "height": 900})
    opened(page, console, "versions")
    page.get_by_role("button", name="Register settings").click()
    page.get_by_label("Name, never used before").fill("polite")
    page.get_by_label("System prompt", exact=True).fill("Be <b>polite</b>.")
    page.get_by_label("temperature").fill("0.2")
    page.get_by_label("More request fields").fill('{"stop": ["END"]}')
    page.get_by_label("Why").fill("answers are rude")
    picture(page, "console-settings")
    done(page, "/v1/versions")
    page.get_by_role("button", name="polite", exact=True).click()
    expect(page.locator("#detail")).to_contain_text("Differences from its parent")
    page.get_by_role("button", name="Evaluate polite").click()
    page.get_by_label("Recorded prompts").fill("10")
    page.get_by_label("Why").fill("before its first user")
    done(page, "/evaluation")
    registered = console.harness.versions.registry.settings("polite")
    assert registered is not None
    assert registered.settings.system == "Be <b>polite</b>."
    defaults = registered.settings.defaults
    assert (defaults.temperature, defaults.stop) == (0.2, ("END",))

    opened(page, console, "training")
    page.get_by_role("button", name="Ask for a training").click()
    page.get_by_label("Method").select_option("kto")
    page.get_by_role("textbox", name="Recipe").fill("hyperparameters: {beta: 0.2}\nmethod: kto")
    page.get_by_label("Why").fill("enough thumbs")
    done(page, "/v1/training/jobs")
    expect(page.locator("#list")).to_contain_text("kto")

    opened(page, console, "erasures")
    page.get_by_role("button", name="Erase a person").click()
    page.get_by_label("User id").fill("eve")
    page.get_by_label("Why").fill("asked by mail")
    done(page, "/v1/erasures")
    expect(page.locator("#list")).to_contain_text("asked by mail")
    expect(page.locator("#list")).not_to_contain_text("eve")


def test_the_weeks_report_is_drawn_and_a_hidden_page_reads_nothing(
    page: Page, console: ConsoleHarness
) -> None:
    console.call(fill(console))
    page.set_viewport_size({"width": 1_100, "height": 1_100})
    opened(page, console, "report")
    expect(page.locator("#list")).to_contain_text("3 of 100 (3 %)")
    page.get_by_label("Pairs wanted").fill("3")
    page.get_by_label("Pairs wanted").press("Tab")
    expect(page.locator("#list")).to_contain_text("3 of 3 (100 %)")
    expect(page.locator("#list svg")).to_have_attribute("aria-label", re.compile(": 3"))
    picture(page, "console-report")
    page.get_by_label("A day of the week").fill("2020-01-01")
    expect(page.locator("#list h2")).to_contain_text("2019-12-30")

    page.clock.install()
    opened(page, console, "quality")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.clock.run_for(60_000)
    assert asked == []
    page.evaluate("delete document.hidden")
    with page.expect_request("**/v1/quality"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


CARD = {
    "dataset_id": "m-dpo-0123",
    "splits": {"train": 412, "heldout": 46, "judge": 97, "prompts": 200, "left_out": 3},
    "refused": {"similar_answers": 12, "rater_cap": 7, "burst": 25},
    "card": {
        "counts": {"rows": 412, "raters": 31, "prompts": 388},
        "source": {"vote": 300, "correction": 112},
        "category": {"creative": 212, "<b>factual_qa</b>": 200},
        "quality": {"score": 71, "clear winners": 64},
    },
    "rules": {"min_chars": 10, "similarity": 0.8, "people_only": ["medical"]},
}


def test_a_dataset_shows_its_card_and_leads_to_what_was_trained_on_it(
    page: Page, console: ConsoleHarness
) -> None:
    harness = console.harness
    figures = {"data_on_policy_share": 0.83, "data_policy_lag": 1.2, "data_age_days": 4.5}
    console.call(register(harness.log, "v3", dataset=CARD, metrics=figures))
    console.call(until_known(harness, "v3"))
    opened(page, console, "datasets")
    page.get_by_role("button", name="m-dpo-0123").click()
    detail = page.locator("#detail")
    for text in ("31", "<b>factual_qa</b>", "rater_cap", "83 %", "similarity", "heldout"):
        expect(detail).to_contain_text(text)
    assert page.locator("b").count() == 0
    checked(page, "the card")
    page.set_viewport_size({"width": 1_100, "height": 1_000})
    page.evaluate("document.getElementById('detail').scrollIntoView()")
    picture(page, "console-dataset")

    detail.get_by_role("link", name="v3").click()
    expect(page.locator("#detail h2")).to_have_text("v3")
    page.locator("#detail").get_by_role("link", name="m-dpo-0123").click()
    expect(page.locator("#detail h2")).to_have_text("m-dpo-0123")
    page.goto(f"{console.url}datasets#none")
    expect(page.locator("#detail .empty")).to_contain_text("there is none of this name")
    page.goto(f"{console.url}datasets#d")
    expect(page.locator("#detail")).to_contain_text("Its record is older than cards")


def test_an_approver_accepts_data_that_one_tenant_gave_most_of(
    page: Page, console: ConsoleHarness
) -> None:
    harness = console.harness
    tenants = {"<b>acme</b>": 9, "globex": 1}
    console.call(register(harness.log, "v3", tenants=tenants))
    console.call(until_known(harness, "v3"))
    page.set_viewport_size({"width": 1_100, "height": 900})
    opened(page, console, "")
    expect(page.locator("#sentence")).to_contain_text(
        "v3 waits for an approver, as tenant <b>acme</b> gave 90%"
    )
    rollout_id = console.state.rollout_id
    enough = harness.controller.command(
        rollout_id, lambda state, at: abort(state, at, "enough"), "ann"
    )
    console.call(enough)
    opened(page, console, "versions")
    page.get_by_role("button", name="v3", exact=True).click()
    expect(page.locator("#detail")).to_contain_text("Rows of its dataset, by tenant")
    page.get_by_role("button", name="Accept and start v3").click()
    page.get_by_label("Why").fill("its pairs were read")
    done(page, "/v1/rollouts")
    candidates = [one.state.candidate for one in harness.decision_log.histories("m")]
    assert candidates == ["v2", "v3"]
