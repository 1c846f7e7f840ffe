"""Versions of prompts and settings, asked for as a client asks."""

from __future__ import annotations

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.contracts.events.versions import RequestDefaults, ServedSettings
from shared.registry.versions import Registry
from tests.support.rollouts import add_settings
from tests.unit.router.conftest import GatewayHarness

POLITE = ServedSettings(system="Be polite.", defaults=RequestDefaults(temperature=0.2))


def use(bench: GatewayHarness, **versions: ServedSettings) -> None:
    registry = Registry()
    for version, settings in versions.items():
        add_settings(registry, version, settings, model="m", base="qwen")
    bench.state.use_registry(registry)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engine_gets_the_settings_and_the_client_sees_its_version(
    bench: GatewayHarness, stream
):
    await bench.start()
    use(bench, polite=POLITE)
    bench.route(stable="polite")
    response = await bench.ask(stream=stream, user="ana")
    assert response.status_code == 200
    assert response.headers["x-ratchet-version"] == "polite"
    assert b'"polite"' in response.content
    assert b"qwen" not in response.content
    sent = orjson.loads(bench.seen.bodies[0])
    assert sent["model"] == "qwen"
    assert sent["messages"] == [
        {"role": "system", "content": "Be polite."},
        {"role": "user", "content": "hi"},
    ]
    assert sent["temperature"] == 0.2


@pytest.mark.parametrize(("settings", "kept"), [(POLITE, False), (ServedSettings(), True)])
async def test_nothing_that_repeats_the_prompt_is_asked_for_with_the_operators(
    bench: GatewayHarness, settings: ServedSettings, kept: bool
):
    await bench.start()
    use(bench, polite=settings)
    bench.route(stable="polite")
    asked = {"prompt_logprobs": 1, "return_prompt_text": True, "return_token_ids": True}
    assert (await bench.ask(seed=1, **asked)).status_code == 200
    sent = orjson.loads(bench.seen.bodies[0])
    assert (asked.keys() <= sent.keys()) == kept
    assert kept or not asked.keys() & sent.keys()
    assert sent["seed"] == 1


async def test_the_event_keeps_what_the_client_sent_and_says_what_the_engine_got(
    bench: GatewayHarness,
):
    await bench.start()
    use(bench, polite=POLITE)
    bench.route(stable="polite")
    await bench.ask(temperature=None)
    await bench.ask(temperature=0.9)
    first, second = bench.events()
    assert [(turn.role, turn.content) for turn in first.messages] == [("user", "hi")]
    assert first.applied_settings is not None
    assert second.applied_settings is not None
    assert first.applied_settings.engine_model == "qwen"
    assert first.applied_settings.system_sha256 == POLITE.system_sha256
    assert first.applied_settings.fields == ("temperature",)
    assert second.applied_settings.fields == ()
    assert not first.untrainable


async def test_each_attempt_has_the_settings_of_its_own_version(bench: GatewayHarness):
    await bench.start()
    registry = Registry()
    add_settings(registry, "harmful", POLITE, model="m", base="fail")
    add_settings(registry, "plain", model="m", base="qwen")
    bench.state.use_registry(registry)
    bench.route(stable="plain", candidate="harmful", weight=10_000)
    assert (await bench.ask(user="ana")).headers["x-ratchet-arm"] == "fallback"
    models = [orjson.loads(body)["model"] for body in bench.seen.bodies]
    turns = [len(orjson.loads(body)["messages"]) for body in bench.seen.bodies]
    assert (models, turns) == (["fail", "qwen"], [2, 1])
    (event,) = bench.events()
    assert event.applied_settings is not None
    assert event.applied_settings.engine_model == "qwen"
    assert event.applied_settings.system_sha256 == ""


async def without_the_model(request: web.Request) -> web.Response:
    """What vLLM answers for a name that it has not loaded."""
    name = (await request.json())["model"]
    return web.json_response(
        {"error": {"message": f"The model `{name}` does not exist."}}, status=404
    )


async def test_an_engine_without_what_a_version_serves_is_the_versions_fault(
    bench: GatewayHarness,
):
    app = web.Application()
    app.router.add_post("/v1/embeddings", without_the_model)
    async with TestServer(app) as engine:
        await bench.start(engines=(str(engine.make_url("")).rstrip("/"),))
        use(bench, polite=POLITE)
        bench.route(candidate="polite", weight=10_000)
        body = {"model": "m", "input": "one", "user": "ana"}
        assert (await bench.client.post("/v1/embeddings", json=body)).status_code == 502
        (event,) = bench.events()
        assert [(one.version, one.outcome) for one in event.attempts] == [
            ("polite", "server_error"),
            ("m-v1.0", "server_error"),
        ]


async def test_an_adapters_request_is_untouched(bench: GatewayHarness):
    await bench.start()
    use(bench, polite=POLITE)
    bench.route(stable="m-v1.0")
    await bench.ask()
    assert orjson.loads(bench.seen.bodies[0]) == {
        "model": "m-v1.0",
        "messages": [{"role": "user", "content": "hi"}],
    }
    (event,) = bench.events()
    assert event.applied_settings is None
