"""The HTTP interface: what is refused, and that every refusal is one the OpenAI client can read."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime

import httpx
import orjson
import pytest

from services.router.answer_readers import WHOLE_READERS
from services.router.state import REDIS, ROLLOUTS
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.versions import Lifecycle, VersionState, record_key, state_key
from shared.http.cors import with_cors
from shared.keys import new_key
from shared.registry.versions import Registry
from tests.support.rollouts import version_record
from tests.support.waiting import eventually
from tests.unit.router.conftest import GatewayHarness, error_of


async def test_an_unknown_model(bench: GatewayHarness):
    await bench.start()
    bench.route()
    response = await bench.ask(model="gpt-x")
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"].endswith("name one of: m")
    assert await bench.attempts() == {("", "", "client_error"): 1}


async def test_before_the_first_version_an_error_says_how_there_will_be_one(bench: GatewayHarness):
    await bench.start()
    error = error_of(await bench.ask(model="m"))
    assert error["code"] == "model_not_found"
    assert "ratchet versions register" in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"model":"m","messages":"hi"}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_malformed_body(bench: GatewayHarness, body, path):
    await bench.start()
    bench.route()
    response = await bench.client.post(path, content=body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"
    assert await bench.attempts() == {("", "", "client_error"): 1}
    assert (await bench.ask()).status_code == 200


async def test_no_label_takes_what_a_client_made_up(bench: GatewayHarness):
    await bench.start()
    bench.route(candidate="m-v1.1", weight=5_000)
    for number in range(50):
        await bench.ask(model=f"model-{number}")
        await bench.ask(user=f"user-{number}", metadata={"segment": f"segment-{number}"})
    text = (await bench.client.get("/metrics")).text
    assert not any(
        f"{kind}-{number}" in text for kind in ("model", "user", "segment") for number in range(50)
    )


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit(bench: GatewayHarness, chunked):
    await bench.start(max_body_bytes=100_000)
    bench.route()
    size = 600_000

    async def parts():
        for _ in range(6):
            yield b" " * (size // 6)

    content = parts() if chunked else b" " * size
    response = await bench.client.post("/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert await bench.attempts() == {("", "", "client_error"): 1}
    assert (await bench.ask()).status_code == 200


async def test_only_so_many_requests_run_at_a_time(bench: GatewayHarness):
    await bench.start(max_running=3, delay_s=0.3)
    bench.route()
    answers = await asyncio.gather(*(bench.ask() for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 7
    assert await bench.attempts() == {("m-v1.0", "", "ok"): 3, ("", "", "server_error"): 7}
    assert (await bench.ask()).status_code == 200


async def test_a_body_that_never_comes(bench: GatewayHarness):
    await bench.start(body_timeout_s=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bench.url.rsplit(":", 1)[1]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 60)
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_before_its_body_is_there(bench: GatewayHarness):
    await bench.start()
    _, writer = await asyncio.open_connection("127.0.0.1", int(bench.url.rsplit(":", 1)[1]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
    writer.close()
    await writer.wait_closed()

    async def counted() -> bool:
        return await bench.attempts() == {("", "", "cancelled"): 1}

    await eventually(counted, "the request was counted as cancelled")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/nothing", 404),
    ],
)
async def test_wrong_ways_in(bench: GatewayHarness, method, path, status):
    await bench.start()
    response = await bench.client.request(method, path)
    assert response.status_code == status
    error_of(response)


async def test_the_models_on_offer(bench: GatewayHarness):
    await bench.start()
    bench.route()
    listed = (await bench.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [row["id"] for row in listed["data"]] == ["m"]
    assert (await bench.client.get("/v1/models/m")).json()["object"] == "model"


async def test_before_anything_is_known_it_says_try_again(bench: GatewayHarness):
    await bench.start(sources=())
    assert (await bench.ask()).status_code == 503


@pytest.mark.parametrize("source", [REDIS, ROLLOUTS])
async def test_one_source_is_enough_to_serve(bench: GatewayHarness, source):
    await bench.start(sources=(source,))
    bench.route()
    assert (await bench.ask()).status_code == 200
    assert (await bench.ask(model="other")).status_code == 503


async def test_a_version_by_name_has_no_arm(bench: GatewayHarness):
    await bench.start()
    bench.route(candidate="m-v1.1", weight=0)
    response = await bench.ask(model="m-v1.1")
    assert response.headers["x-ratchet-version"] == "m-v1.1"
    assert response.headers["x-ratchet-arm"] == ""
    await bench.ask(model="m-v1.1", headers={"x-ratchet-purpose": "comparison"})
    events = bench.events()
    assert [event.purpose for event in events] == ["explicit", "comparison"]
    assert {(event.arm, event.rollout, event.model) for event in events} == {("", "", "m")}
    assert await bench.attempts() == {("m-v1.1", "", "ok"): 2}


async def test_a_rejected_version_by_name_is_unknown_and_says_why(bench: GatewayHarness):
    await bench.start()
    bench.route()
    registry = Registry()
    record = version_record("m-v1.1", model="m")
    state = VersionState(
        version="m-v1.1",
        model="m",
        state=Lifecycle.rejected,
        rollout="r",
        reason="errors",
        token=1,
        at=datetime.now(UTC),
    )
    registry.apply(record_key("m-v1.1"), record.to_json())
    registry.apply(state_key("m-v1.1"), state.to_json())
    bench.state.use_registry(registry)
    response = await bench.ask(model="m-v1.1")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "was rejected" in response.json()["error"]["message"]
    assert [row["id"] for row in (await bench.client.get("/v1/models")).json()["data"]] == ["m"]


async def test_what_answers_do_is_counted_by_arm(bench: GatewayHarness):
    await bench.start()
    bench.route(candidate="m-v1.1", weight=10_000)
    for stream in (False, True):
        assert (await bench.ask(user="ana", stream=stream)).status_code == 200
    text = (await bench.client.get("/metrics")).text
    rows = [row for row in text.splitlines() if row.startswith("ratchet_router_answers_total")]
    answered = [row for row in rows if 'arm="candidate"' in row and 'behaviour="answered"' in row]
    assert [row.rsplit(" ", 1)[1] for row in answered] == ["2.0"]


async def test_an_answer_in_another_language_than_the_users_last_turn_is_counted(
    bench: GatewayHarness,
):
    await bench.start()
    bench.route(candidate="m-v1.1", weight=10_000)
    turns = [
        {"role": "user", "content": "Where is my parcel?"},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": [{"type": "text", "text": "Und wo ist mein Brief?"}]},
    ]
    assert (await bench.ask(user="ana", messages=turns)).status_code == 200
    text = (await bench.client.get("/metrics")).text
    rows = [row for row in text.splitlines() if 'behaviour="language_switched"' in row]
    assert [row.rsplit(" ", 1)[1] for row in rows if 'arm="candidate"' in row] == ["1.0"]


async def test_outside_a_rollout_no_language_is_told(
    bench: GatewayHarness, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    monkeypatch.setattr(
        "services.router.behaviour.language_of", lambda text: told.append(text) or ""
    )
    await bench.start()
    bench.route()
    assert (await bench.ask(user="ana")).status_code == 200
    assert (await bench.client.get("/metrics")).status_code == 200
    assert told == [""]
    bench.route(candidate="m-v1.1", weight=10_000)
    assert (await bench.ask(user="ana")).status_code == 200
    assert (await bench.client.get("/metrics")).status_code == 200
    assert "hi" in told


async def test_a_purpose_needs_a_version(bench: GatewayHarness):
    await bench.start()
    bench.route()
    response = await bench.ask(headers={"x-ratchet-purpose": "evaluation"})
    assert response.status_code == 400


def issue(bench: GatewayHarness, *scopes: Permission, explicit: bool = False) -> str:
    key = new_key()
    issued = ApiKeyIssued(
        key_id=key[-6:],
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        tenant="acme",
        scopes=scopes,
        explicit_versions=explicit,
        issued_at=datetime.now(UTC),
    )
    bench.keys.apply(issued.key_id, issued.to_json())
    return key


async def test_keys_are_asked_for_and_name_the_tenant(bench: GatewayHarness):
    await bench.start(keys_required=True)
    bench.route()
    assert (await bench.ask()).status_code == 401
    assert (await bench.ask(headers={"authorization": "Bearer nonsense"})).status_code == 401
    wrong = issue(bench, Permission.feedback)
    assert (await bench.ask(headers={"authorization": f"Bearer {wrong}"})).status_code == 403
    assert (await bench.client.get("/v1/models")).status_code == 401
    right = {"authorization": f"Bearer {issue(bench, Permission.infer)}"}
    assert (await bench.ask(headers=right)).status_code == 200
    assert bench.events()[0].tenant == "acme"
    assert (await bench.ask(headers=right, model="m-v1.0")).status_code == 403
    naming = {"authorization": f"Bearer {issue(bench, Permission.infer, explicit=True)}"}
    assert (await bench.ask(headers=naming, model="m-v1.0")).status_code == 200


async def test_a_key_is_not_refused_before_the_keys_are_read(bench: GatewayHarness):
    await bench.start(keys_required=True)
    bench.keys.whole = False
    bench.route()
    response = await bench.ask(headers={"authorization": "Bearer rk_x"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_weight_0_is_zero_requests_and_users_stay_while_it_rises(bench: GatewayHarness):
    await bench.start()
    users = [f"u{number}" for number in range(60)]
    before: set[str] = set()
    for weight in (0, 500, 2_000, 5_000, 10_000):
        bench.route(candidate="m-v1.1", weight=weight)
        answers = [await bench.ask(user=user) for user in users]
        now = {
            user
            for user, answer in zip(users, answers, strict=True)
            if answer.headers["x-ratchet-arm"] == "candidate"
        }
        assert before <= now
        if weight in (0, 10_000):
            assert len(now) == len(users) * weight // 10_000
        before = now


async def test_settings_dropped(bench: GatewayHarness):
    """Case settings-dropped: what was asked for is passed on, refused, or named in a header."""
    await bench.start()
    bench.route()
    asked: tuple[dict[str, object], ...] = (
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"min_tokens": 5},
        {"stop_token_ids": [2]},
        {"continue_final_message": True, "add_generation_prompt": False},
    )
    for body in asked:
        response = await bench.ask(**body)
        assert response.status_code == 200
        assert "x-ratchet-ignored" not in response.headers
        assert body.items() <= orjson.loads(bench.seen.bodies[-1]).items()
    refused = await bench.ask(priority=-100)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "priority")
    for stream in (False, True):
        response = await bench.ask(stream=stream, store=True, **{"a, b\r\nx: é": 1})
        assert response.headers["x-ratchet-ignored"] == "store, a%2C%20b%0D%0Ax%3A%20%C3%A9"


PAGE = "https://app.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_cors_preflight(bench: GatewayHarness):
    """Case cors-preflight: pages of a named origin may ask and read the trace id, no others."""
    await bench.start(cors_origins=(PAGE,))
    bench.route()

    async def preflight(origin: str) -> httpx.Response:
        headers = {"origin": origin, **PREFLIGHT}
        return await bench.client.options("/v1/chat/completions", headers=headers)

    allowed = await preflight(PAGE)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in (await preflight("https://evil.example")).headers
    for stream in (False, True):
        answer = await bench.ask({"origin": PAGE}, stream=stream)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-ratchet-trace-id" in answer.headers["access-control-expose-headers"]
    refused = await bench.ask({"origin": PAGE}, model="nothing")
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, PAGE)


async def test_cors_preflight_is_off_unless_asked_for(bench: GatewayHarness):
    await bench.start()
    bench.route()
    headers = {"origin": PAGE, **PREFLIGHT}
    assert (await bench.client.options("/v1/chat/completions", headers=headers)).status_code == 405
    assert "access-control-allow-origin" not in (await bench.ask({"origin": PAGE})).headers


def test_without_origins_the_application_is_not_wrapped():
    async def app(*_: object) -> None: ...

    assert with_cors(app, (), methods=("GET",), expose=()) is app


async def test_a_fault_of_our_own_is_told_in_the_same_shape(bench: GatewayHarness, monkeypatch):
    await bench.start()
    bench.route()

    def broken(*_: object) -> None:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setitem(WHOLE_READERS, "chat", broken)
        response = await bench.ask()
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert (await bench.ask()).status_code == 200


async def test_a_clients_trace_goes_on_and_names_no_request(bench: GatewayHarness):
    await bench.start()
    bench.route()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    given = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    ids = {(await bench.ask(headers=given)).headers["x-ratchet-trace-id"] for _ in "ab"}
    assert len(ids | {trace}) == 3
    carried = {
        dict(record.headers)["traceparent"].decode().split("-")[1]
        for record in bench.spool.batch()[0]
    }
    assert carried == {trace}


async def test_whatever_clients_send_makes_no_new_series(bench: GatewayHarness):
    await bench.start()
    bench.route(candidate="m-v1.1", weight=5_000)

    async def series() -> set[str]:
        lines = (await bench.client.get("/metrics")).text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if line.startswith("ratchet_")}

    async def ask_all(made_up: str) -> None:
        headers = {"x-ratchet-user": made_up, "x-ratchet-session": made_up}
        for stream in (False, True):
            for segment in ("gold", made_up):
                for user in ("ann", "bob", made_up, f"{made_up}-2", f"{made_up}-3"):
                    more = {"metadata": {"segment": segment, made_up: made_up}}
                    await bench.ask(headers, stream=stream, user=user, **more)
        await bench.ask(model=made_up)
        await bench.ask({"x-ratchet-purpose": made_up})
        await bench.client.post(f"/v1/{made_up}", content=made_up)

    await ask_all("first")
    known = await series()
    for number in range(5):
        await ask_all(f"made-up-{number}")
    assert await series() == known
    assert len(known) <= 2_000
