"""Attempts, the retry on stable (invariant 2), streams, and what each request leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.stub_engine import TEXT, serve_stub, stream_events
from services.router import relay
from services.router.proxy import Deadlines
from shared.contracts.events.interactions import Outcome
from tests.support.waiting import eventually
from tests.unit.router.conftest import GatewayHarness, error_of

QUICK = Deadlines(answer_s=1.5, stream_s=4.0)
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def stream_text(response: httpx.Response) -> str:
    events = [line[6:] for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [orjson.loads(event) for event in events[:-1]]
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
    )


def text_of(response: httpx.Response, *, stream: bool) -> str:
    if stream:
        return stream_text(response)
    return response.json()["choices"][0]["message"]["content"]


@BOTH
async def test_a_request_is_answered_recorded_and_counted(bench: GatewayHarness, stream):
    await bench.start()
    bench.route()
    response = await bench.ask(stream=stream, user="u1", metadata={"segment": "gold"})
    assert response.status_code == 200
    assert text_of(response, stream=stream) == TEXT
    (event,) = bench.events()
    assert event.trace_id == response.headers["x-ratchet-trace-id"]
    assert event.version == response.headers["x-ratchet-version"] == "m-v1.0"
    assert response.headers["x-ratchet-arm"] == ""
    assert float(response.headers["x-ratchet-overhead-ms"]) == event.overhead_ms
    assert 0 < event.overhead_ms < event.duration_ms
    assert (event.completion, event.finish_reason, event.outcome) == (TEXT, "stop", Outcome.ok)
    assert (event.stream, event.user_id, event.completion_tokens > 0) == (stream, "u1", True)
    assert (event.ttft_ms is not None) is stream
    assert await bench.attempts() == {("m-v1.0", "", "ok"): 1}
    sent = orjson.loads(bench.seen.bodies[0])
    assert sent["model"] == "m-v1.0"
    assert "user" not in sent


@BOTH
async def test_response_id_as_trace_id(bench: GatewayHarness, stream):
    """Case response-id-as-trace-id, the router's part: every id a client has is the trace id."""
    await bench.start()
    bench.route(candidate="m-fail")
    response = await bench.ask(stream=stream)
    bodies = (
        [orjson.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
        if stream
        else [response.json()]
    )
    (event,) = bench.events()
    assert {body["id"] for body in bodies} == {event.trace_id}
    assert response.headers["x-request-id"] == response.headers["x-ratchet-trace-id"]
    assert response.headers["x-request-id"] == event.trace_id
    assert event.engine_id == "chatcmpl-stub"


@BOTH
@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [
        ("m-fail", "server_error"),
        ("m-missing", "server_error"),
        ("m-drop", "crash"),
        ("m-hang", "timeout"),
    ],
)
async def test_stable_answers_when_the_candidate_cannot(
    bench: GatewayHarness, candidate, outcome, stream
):
    await bench.start(deadlines=QUICK)
    bench.route(candidate=candidate)
    response = await bench.ask(user="ana", stream=stream)
    assert response.status_code == 200
    assert text_of(response, stream=stream) == TEXT
    assert response.headers["x-ratchet-version"] == "m-v1.0"
    assert response.headers["x-ratchet-arm"] == "fallback"
    (event,) = bench.events()
    assert [(a.version, a.arm, a.outcome) for a in event.attempts] == [
        (candidate, "candidate", outcome),
        ("m-v1.0", "fallback", "ok"),
    ]
    assert (event.arm, event.rollout, event.outcome) == ("fallback", "r1", "ok")
    assert await bench.attempts() == {
        (candidate, "candidate", outcome): 1,
        ("m-v1.0", "fallback", "ok"): 1,
    }


async def test_deadline_differs_by_arm(bench: GatewayHarness):
    """Case deadline-differs-by-arm: an identical engine behind both arms is judged alike."""
    await bench.start(delay_s=0.7 * QUICK.answer_s, deadlines=QUICK)
    for weight in (0, 10_000):
        bench.route(candidate="m-v1.1", weight=weight)
        assert (await bench.ask(user="ana")).status_code == 200
    assert await bench.attempts() == {
        ("m-v1.0", "stable", "ok"): 1,
        ("m-v1.1", "candidate", "ok"): 1,
    }


async def test_deadline_differs_by_arm_the_retry_has_time_of_its_own(bench: GatewayHarness):
    """Case deadline-differs-by-arm: the candidate used up all its time, stable needs most of its."""
    await bench.start(delay_s=0.7 * QUICK.answer_s, deadlines=QUICK)
    bench.route(candidate="m-hang")
    response = await bench.ask(user="ana")
    assert (response.status_code, response.headers["x-ratchet-arm"]) == (200, "fallback")
    assert await bench.attempts() == {
        ("m-hang", "candidate", "timeout"): 1,
        ("m-v1.0", "fallback", "ok"): 1,
    }


@BOTH
@pytest.mark.parametrize(
    ("stable", "status", "outcome"),
    [
        ("m-fail", 502, "server_error"),
        ("m-missing", 502, "server_error"),
        ("m-drop", 503, "crash"),
        ("m-hang", 504, "timeout"),
    ],
)
async def test_what_the_client_is_told_when_stable_fails(
    bench: GatewayHarness, stable, status, outcome, stream
):
    await bench.start(deadlines=QUICK)
    bench.route(stable=stable)
    response = await bench.ask(stream=stream)
    assert response.status_code == status
    assert error_of(response)["type"] == "server_error"
    assert "x-ratchet-trace-id" in response.headers
    (event,) = bench.events()
    assert (event.outcome, event.completion) == (outcome, "")
    assert await bench.attempts() == {(stable, "", outcome): 1}


@BOTH
async def test_both_arms_failing_is_told_once_and_counted_twice(bench: GatewayHarness, stream):
    await bench.start(deadlines=QUICK)
    bench.route(stable="m-fail", candidate="m-drop")
    response = await bench.ask(user="ana", stream=stream)
    assert response.status_code == 502
    assert len(bench.events()) == 1
    assert await bench.attempts() == {
        ("m-drop", "candidate", "crash"): 1,
        ("m-fail", "fallback", "server_error"): 1,
    }


@BOTH
async def test_a_dead_engine(bench: GatewayHarness, stream):
    await bench.start(engines=("http://127.0.0.1:9",))
    bench.route()
    response = await bench.ask(stream=stream)
    assert response.status_code == 503
    assert error_of(response)["code"] == "engine_unavailable"
    assert response.headers["retry-after"] == "1"
    assert await bench.attempts() == {("m-v1.0", "", "crash"): 1}


@BOTH
async def test_the_engines_own_refusal_passes_through_without_a_retry(
    bench: GatewayHarness, stream
):
    await bench.start()
    bench.route(candidate="m-refuse")
    response = await bench.ask(stream=stream)
    assert response.status_code == 400
    assert error_of(response)["message"] == "too many tokens for m-refuse"
    (event,) = bench.events()
    assert len(event.attempts) == 1
    assert await bench.attempts() == {("m-refuse", "candidate", "client_error"): 1}


async def test_a_stream_that_breaks_after_its_first_token_ends_with_an_error(bench: GatewayHarness):
    await bench.start(delay_s=0.01)
    bench.route(candidate="m-torn")
    response = await bench.ask(user="ana", stream=True)
    assert response.status_code == 200
    last = [line for line in response.text.split("\n\n") if line][-1]
    assert orjson.loads(last[6:])["error"]["code"] == "engine_unavailable"
    (event,) = bench.events()
    assert [(a.arm, a.outcome) for a in event.attempts] == [("candidate", "crash")]
    assert event.completion
    assert TEXT.startswith(event.completion)
    assert await bench.attempts() == {("m-torn", "candidate", "crash"): 1}


async def test_a_stream_that_hangs_after_its_first_token_counts_the_gap(bench: GatewayHarness):
    await bench.start(deadlines=QUICK)
    bench.route(candidate="m-stall")
    response = await bench.ask(user="ana", stream=True)
    last = [line for line in response.text.split("\n\n") if line][-1]
    assert orjson.loads(last[6:])["error"]["code"] == "engine_timeout"
    (event,) = bench.events()
    assert event.outcome == "timeout"
    assert event.max_gap_ms is not None
    # The deadline runs from the socket's last bytes, the gap from the moment the relay read them.
    assert event.max_gap_ms >= QUICK.answer_s * 1000 / 2
    assert await bench.attempts() == {("m-stall", "candidate", "timeout"): 1}


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_shown_only_to_who_asked(bench: GatewayHarness, asked):
    await bench.start()
    bench.route()
    response = await bench.ask(stream=True, stream_options={"include_usage": asked})
    assert ('"usage"' in response.text) is asked
    assert bench.events()[0].completion_tokens > 0


@BOTH
async def test_a_client_that_leaves_takes_its_request_with_it(bench: GatewayHarness, stream):
    await bench.start(delay_s=0.0 if not stream else 0.2)
    bench.route(stable="m-v1.0" if stream else "m-hang")
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    if stream:
        async with bench.client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_bytes():
                break
    else:
        with pytest.raises(httpx.ReadTimeout):
            await bench.client.post("/v1/chat/completions", json=body, timeout=0.3)
    await eventually(lambda: bench.seen.aborted == 1, "the engine lost its client too")
    await eventually(bench.events, "the cancelled request left its event")
    (event,) = bench.events()
    assert event.outcome == "cancelled"
    assert list((await bench.attempts()).items()) == [
        (("m-v1.0" if stream else "m-hang", "", "cancelled"), 1)
    ]


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that streams until nobody takes any more."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    (event,) = stream_events("m-v1.0", TEXT, 1)[1:2]
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(event * 100)
            await writer.drain()


async def test_a_client_that_does_not_read_is_no_fault_of_the_engine(bench: GatewayHarness):
    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    bench.stack.callback(server.close)
    engine = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await bench.start(engines=(engine,), deadlines=QUICK)
    bench.route()
    body = orjson.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    )
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with deaf:
        deaf.connect(("127.0.0.1", int(bench.url.rpartition(":")[2])))
        deaf.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await eventually(bench.events, "the deadline ended it")
        (event,) = bench.events()
        assert (event.outcome, event.attempts[0].error) == (
            Outcome.cancelled,
            "the client did not read its answer",
        )
        assert await bench.attempts() == {("m-v1.0", "", "cancelled"): 1}


async def test_an_answer_that_came_in_time_is_no_cancel(bench: GatewayHarness):
    """The watch for a leaving client must not fire on the end of its own request."""
    await bench.start(delay_s=0.12)
    bench.route()
    responses = await asyncio.gather(*(bench.ask() for _ in range(20)))
    assert {response.status_code for response in responses} == {200}
    assert await bench.attempts() == {("m-v1.0", "", "ok"): 20}


async def test_an_engine_that_is_down_is_passed_over(bench: GatewayHarness):
    server, seen = await serve_stub("127.0.0.1", 0)
    bench.stack.callback(server.close)
    alive = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await bench.start(engines=("http://127.0.0.1:9", alive))
    bench.route()
    for _ in range(5):
        assert (await bench.ask()).status_code == 200
    assert seen.requests == 5
    assert await bench.attempts() == {("m-v1.0", "", "ok"): 5}


async def test_the_least_busy_engine_is_asked(bench: GatewayHarness):
    stubs = [await serve_stub("127.0.0.1", 0, delay_s=0.2) for _ in range(2)]
    for server, _ in stubs:
        bench.stack.callback(server.close)
    urls = (f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server, _ in stubs)
    await bench.start(engines=tuple(urls))
    bench.route()
    await asyncio.gather(*(bench.ask() for _ in range(10)))
    assert [seen.requests for _, seen in stubs] == [5, 5]


@BOTH
async def test_connections_to_the_engine_are_used_again(bench: GatewayHarness, stream):
    connections = 0
    relays: set[asyncio.Task[None] | None] = set()
    stub, _ = await serve_stub("127.0.0.1", 0)
    bench.stack.callback(stub.close)
    stub_port = stub.sockets[0].getsockname()[1]

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        relays.add(asyncio.current_task())
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", stub_port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                target.write(data)
            target.close()
            await target.wait_closed()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    async def ended() -> None:
        await asyncio.wait([task for task in relays if task is not None], timeout=60)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    bench.stack.callback(server.close)
    bench.stack.push_async_callback(ended)
    await bench.start(engines=(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",))
    bench.route()
    for _ in range(5):
        assert (await bench.ask(stream=stream)).status_code == 200
    assert connections == 1


@pytest.mark.parametrize("heartbeat_s", [0.0, 0.02])
async def test_heartbeats_keep_a_silent_stream_alive_by_setting(bench, heartbeat_s):
    await bench.start(delay_s=0.06, deadlines=Deadlines(60.0, 120.0, heartbeat_s))
    bench.route()
    response = await bench.ask(stream=True)
    events = response.text.split("\n\n")
    beats = [number for number, event in enumerate(events) if event == ": heartbeat"]
    # The stub's first event has no token: heartbeats come before it leaves.
    assert bool(beats) is (0 in beats) is (heartbeat_s > 0)
    assert "".join(
        choice["delta"].get("content", "")
        for event in events
        if event.startswith("data: {")
        for choice in orjson.loads(event[6:])["choices"]
    ) == TEXT  # fmt: skip
    (event,) = bench.events()
    assert (event.completion, event.outcome) == (TEXT, Outcome.ok)
    assert event.ttft_ms > 50


async def test_a_stream_that_only_had_heartbeats_ends_with_an_error(bench):
    await bench.start(delay_s=5.0, deadlines=Deadlines(0.3, 2.0, 0.05))
    bench.route(candidate="m-v1.1")
    response = await bench.ask(stream=True)
    assert response.status_code == 200
    *beats, _, last, end = response.text.split("\n\n")  # the stub's first event has no token
    assert end == ""
    assert set(beats) == {": heartbeat"}
    assert "error" in orjson.loads(last[6:])
    assert bench.events()[0].outcome is Outcome.timeout


async def test_a_stream_that_says_nothing_and_does_not_end_is_the_engines_failure(
    bench: GatewayHarness, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(relay, "MAX_EVENT_BYTES", 100_000)
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        chunk = orjson.dumps({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        try:
            while True:
                await response.write(b"data: " + chunk + b"\n\n")
        finally:
            left.set()

    app = web.Application()
    app.router.add_post("/{path:.*}", endless)
    async with TestServer(app) as engine:
        await bench.start(engines=(str(engine.make_url("")).rstrip("/"),))
        bench.route()
        response = await bench.ask(stream=True)
        assert response.status_code == 502
        await asyncio.wait_for(left.wait(), 60)
    (event,) = bench.events()
    assert event.outcome is Outcome.server_error
    assert "before its first token" in event.attempts[0].error
