"""No user has more votes in a rollout's judgement than its few a day."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.router.call import EngineAttempt
from services.router.settings import RouterSettings
from services.router.votes import (
    ATTEMPTS_PER_DAY,
    BAD_PER_DAY,
    CAPPED,
    BadVote,
    VoteCaps,
    VoteLimits,
)
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.interactions import Outcome
from shared.credentials import CredentialsUnreadable
from shared.keys import KeyRing, new_key
from shared.voters import voter_label
from tests.support.votes import NOON, a_call, ended
from tests.unit.router.conftest import GatewayHarness


@pytest.mark.parametrize(
    "bad", [ended(Outcome.server_error), ended(after_s=2.5), ended(Outcome.cancelled, after_s=9)]
)
def test_after_two_bad_attempts_of_a_day_a_user_has_no_vote(bad: EngineAttempt) -> None:
    limits = VoteLimits()
    arms = [limits.arm(a_call("eve"), bad) for _ in range(5)]
    assert arms == ["candidate"] * BAD_PER_DAY + [CAPPED] * 3
    assert limits.arm(a_call("eve"), ended()) == CAPPED
    assert limits.arm(a_call("ana"), ended()) == "candidate"
    assert limits.arm(a_call("eve", at=NOON + timedelta(days=1)), bad) == "candidate"
    assert limits.arm(a_call("eve", rollout="r2"), bad) == "candidate"


def test_good_attempts_are_limited_too() -> None:
    limits = VoteLimits()
    arms = [limits.arm(a_call("eve"), ended()) for _ in range(ATTEMPTS_PER_DAY + 2)]
    assert arms.count("candidate") == ATTEMPTS_PER_DAY
    assert arms[-2:] == [CAPPED] * 2


def test_what_does_not_fail_the_judge_takes_no_vote() -> None:
    limits = VoteLimits()
    for _ in range(3):
        assert limits.arm(a_call("ana"), ended(Outcome.client_error)) == "candidate"
    assert limits.arm(a_call("ana"), ended(Outcome.server_error)) == "candidate"
    assert limits.arm(a_call(""), ended()) == CAPPED
    assert limits.arm(a_call("", rollout=""), ended()) == "candidate"


def test_made_up_users_fill_a_bounded_table_and_the_next_day_has_room() -> None:
    limits = VoteLimits(max_voters=10)
    arms = [limits.arm(a_call(f"u{n}"), ended()) for n in range(12)]
    assert arms == ["candidate"] * 10 + [CAPPED] * 2
    assert limits.arm(a_call("u11", at=NOON + timedelta(days=1)), ended()) == "candidate"


def test_made_up_users_of_one_key_push_out_none_but_each_other() -> None:
    limits = VoteLimits(max_voters=10)
    limits.heard(BadVote(voter=1, day=NOON.toordinal()))
    flood = [limits.arm(a_call(f"u{n}"), ended()) for n in range(30)]
    assert flood.count("candidate") == 9
    others = [limits.arm(a_call(f"v{n}", key="k2"), ended()) for n in range(8)]
    assert others == ["candidate"] * 4 + [CAPPED] * 4, "half of the places each"
    assert limits.arm(a_call("u0"), ended()) == CAPPED, "who gave way has no further votes"
    assert limits.arm(a_call("v0", key="k2"), ended()) == "candidate"
    assert len(limits._cast) == 10


def test_a_full_table_is_cleared_once_a_day_and_not_for_each_further_user() -> None:
    limits = VoteLimits(max_voters=3)
    for n in range(3):
        limits.arm(a_call(f"u{n}"), ended())
    assert limits.arm(a_call("u3"), ended()) == CAPPED
    table = limits._cast
    assert limits.arm(a_call("u4"), ended()) == CAPPED
    assert limits.arm(a_call("u5", at=NOON - timedelta(days=1)), ended()) == CAPPED
    assert limits._cast is table, "not built anew, and not for a request from before midnight"


def test_a_key_and_a_tenant_have_so_many_votes_a_minute() -> None:
    limits = VoteLimits(VoteCaps(key=3, tenant=5))
    first = [limits.arm(a_call(f"u{n}"), ended()) for n in range(5)]
    second = [limits.arm(a_call(f"v{n}", key="k2"), ended()) for n in range(5)]
    assert first == ["candidate"] * 3 + [CAPPED] * 2
    assert second == ["candidate"] * 2 + [CAPPED] * 3
    assert limits.arm(a_call("u0", rollout="r2"), ended()) == "candidate"
    assert limits.arm(a_call("u0", at=NOON + timedelta(minutes=1)), ended()) == "candidate"


def test_nobody_has_votes_where_the_operator_says_so() -> None:
    limits = VoteLimits(VoteCaps(nobody=2))
    arms = [limits.arm(a_call(""), ended(Outcome.server_error)) for _ in range(3)]
    assert arms == ["candidate", "candidate", CAPPED]
    assert limits.arm(a_call("ana"), ended()) == "candidate"
    assert limits.arm(a_call("", key="k2"), ended()) == "candidate"


def test_bad_attempts_of_other_replicas_take_a_users_votes() -> None:
    here, there = VoteLimits(), VoteLimits()
    bad = ended(Outcome.crash)
    assert here.arm(a_call("eve"), bad) == "candidate"
    assert there.arm(a_call("eve"), bad) == "candidate"
    for vote in there.unsent():
        here.heard(vote)
    assert here.arm(a_call("eve"), ended()) == CAPPED
    assert here.arm(a_call("ana"), ended()) == "candidate"
    assert there.unsent() == []


def test_a_late_word_of_yesterday_takes_nobodys_vote_of_today() -> None:
    here, there = VoteLimits(), VoteLimits()
    for _ in range(BAD_PER_DAY):
        there.arm(a_call("eve", at=NOON - timedelta(days=1)), ended(Outcome.crash))
    assert here.arm(a_call("eve"), ended()) == "candidate"
    for vote in there.unsent():
        here.heard(vote)
    assert here.arm(a_call("eve"), ended()) == "candidate"


async def test_what_each_tenant_and_key_adds_is_counted(bench: GatewayHarness) -> None:
    await bench.start()
    bench.route(candidate="m-fail")
    for _ in range(BAD_PER_DAY + 1):
        await bench.ask(user="eve")
    text = (await bench.client.get("/metrics")).text
    counted = {
        (s.labels["by"], s.labels["voter"], s.labels["figure"]): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name == "ratchet_router_voter_attempts_total" and s.value
    }
    tenant, key = voter_label("default"), voter_label("local")
    assert counted == {
        (by, voter, figure): count
        for by, voter in (("tenant", tenant), ("key", key))
        for figure, count in (("requests", BAD_PER_DAY), ("failures", BAD_PER_DAY), ("capped", 1))
    }


async def test_capped_attempts_are_counted_apart_and_served_alike(bench: GatewayHarness) -> None:
    await bench.start()
    bench.route(candidate="m-fail")
    for _ in range(BAD_PER_DAY + 2):
        assert (await bench.ask(user="eve")).status_code == 200
    assert await bench.attempts() == {
        ("m-fail", "candidate", "server_error"): BAD_PER_DAY,
        ("m-fail", CAPPED, "server_error"): 2,
        ("m-v1.0", "fallback", "ok"): BAD_PER_DAY + 2,
    }
    assert [event.attempts[0].arm for event in bench.events()] == ["candidate"] * (BAD_PER_DAY + 2)


async def as_product(bench: GatewayHarness, *, explicit: bool) -> dict[str, str]:
    """Start the gateway with one key, which may name versions or not; its header."""
    bench.keys = KeyRing(required=True)
    await bench.start()
    key = new_key()
    issued = ApiKeyIssued(
        key_id="k1",
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        tenant="acme",
        scopes=(Permission.infer,),
        explicit_versions=explicit,
        issued_at=NOON,
    )
    bench.keys.apply(issued.key_id, issued.to_json())
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_only_a_key_that_may_name_versions_sees_the_arm(
    bench: GatewayHarness, explicit: bool, stream: bool
) -> None:
    headers = await as_product(bench, explicit=explicit)
    bench.route(candidate="m-v1.1")
    answer = await bench.ask(headers=headers, user="ana", stream=stream)
    assert answer.status_code == 200
    assert ("x-ratchet-arm" in answer.headers) is explicit
    assert ("x-ratchet-version" in answer.headers) is explicit
    assert ('"model":"m-v1.1"' in answer.text) is explicit
    assert ('"model":"m"' in answer.text) is not explicit
    assert bench.events()[0].version == "m-v1.1"


@pytest.mark.parametrize("version", ["m-fail", "m-refuse"])
async def test_an_error_names_no_version_to_a_key_that_may_not_name_one(
    bench: GatewayHarness, version: str
) -> None:
    headers = await as_product(bench, explicit=False)
    bench.route(stable=version)
    answer = await bench.ask(headers=headers, user="ana")
    assert answer.status_code in (400, 502)
    assert version not in answer.text


@pytest.mark.parametrize(("text", "good"), [("s" * 32, True), ("short", False), ("s" * 65, False)])
def test_the_assignment_secret_has_a_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, good: bool
) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    monkeypatch.setenv("RATCHET_ROUTER_ASSIGNMENT_SECRET_FILE", str(file))
    settings = RouterSettings.load()
    if good:
        assert settings.assignment_secret() == text.encode()
        return
    with pytest.raises(CredentialsUnreadable, match="RATCHET_ROUTER_ASSIGNMENT_SECRET_FILE"):
        settings.assignment_secret()
