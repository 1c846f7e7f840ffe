"""Held-out users: who they are, what answers them, and what is kept of it."""

from __future__ import annotations

from services.router.assignment import bucket, holdout_bucket
from shared.contracts.events.interactions import Arm
from tests.unit.router.conftest import GatewayHarness

USERS = [f"user-{number}" for number in range(4_000)]
SHARE = 500


def held_out(share: int = SHARE) -> list[str]:
    return [user for user in USERS if holdout_bucket("m", "default", "user", user) < share]


def test_the_holdout_has_its_share_and_draws_users_apart_from_every_rollout():
    held = held_out()
    assert 0.03 < len(held) / len(USERS) < 0.07
    canary = [user for user in held if bucket("r1", "default", "user", user) < 5_000]
    assert 0.4 < len(canary) / len(held) < 0.6
    assert set(held_out(100)) < set(held), "who is held out stays so while the share rises"


async def test_a_held_out_user_stays_on_the_reference_through_a_rollout(bench: GatewayHarness):
    await bench.start()
    held = held_out()[0]
    other = next(user for user in USERS if user not in held_out())
    bench.route(stable="m-v1.1", holdout=SHARE, reference="m-v1.0")
    answer = await bench.ask(user=held)
    assert answer.headers["x-ratchet-version"] == "m-v1.0"
    assert answer.headers["x-ratchet-arm"] == "holdout"
    bench.route(stable="m-v1.1", candidate="m-v1.2", holdout=SHARE, reference="m-v1.0")
    assert (await bench.ask(user=held)).headers["x-ratchet-version"] == "m-v1.0"
    assert (await bench.ask(user=other)).headers["x-ratchet-version"] == "m-v1.2"
    assert (await bench.ask()).headers["x-ratchet-arm"] == "candidate", (
        "no one is held out by chance"
    )
    assert (await bench.attempts())["m-v1.0", "holdout", "ok"] == 2


async def test_the_event_names_the_reference_and_is_kept_out_of_training(bench: GatewayHarness):
    await bench.start()
    bench.route(stable="m-v1.1", holdout=SHARE, reference="m-v1.0")
    await bench.ask(user=held_out()[0])
    await bench.ask(user="nobody-in-particular", model="m")
    first, second = bench.events()
    assert (first.version, first.arm, first.rollout) == ("m-v1.0", Arm.none, "")
    assert (first.holdout, first.untrainable) == ("m-v1.0", ("holdout",))
    assert first.attempts[0].arm is Arm.none
    assert (second.holdout, second.untrainable) == ("", ())


async def test_stable_answers_where_the_reference_fails(bench: GatewayHarness):
    await bench.start()
    bench.route(stable="m-v1.1", holdout=SHARE, reference="fail")
    answer = await bench.ask(user=held_out()[0])
    assert (answer.status_code, answer.headers["x-ratchet-version"]) == (200, "m-v1.1")
