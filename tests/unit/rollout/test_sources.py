"""What agents and Prometheus may answer, and what is made of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.rollout.agents import MAX_SAID, Agents, read
from services.rollout.errors import EvidenceUnavailable
from services.rollout.prometheus import Prometheus

ENGINE = {"ready": True, "generation": 3, "base_model": "b"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    runners: list[web.AppRunner] = []

    async def start(path: str, answer: Callable[[str], web.Response]) -> str:
        async def handle(request: web.Request) -> web.Response:
            form = await request.post()
            return answer(str(form.get("query", "")))

        app = web.Application()
        app.router.add_route("*", path, handle)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def test_an_agents_answer() -> None:
    adapters = [
        {"version": "v1", "state": "ready", "reason": "", "difference": 0.0},
        {"version": "v2", "state": "loading", "reason": "", "difference": None},
        {"version": "v3", "state": "refused", "reason": "checksum", "difference": None},
    ]
    body = {"engine": ENGINE, "adapters": adapters}
    assert read(body, "v1").candidate_ready
    assert (read(body, "v2").candidate_ready, read(body, "v2").detail) == (False, "loading")
    assert read(body, "v3").refused == "checksum"
    assert not read(body, "v9").candidate_ready
    close = {"version": "v4", "state": "refused", "reason": "like v3", "fault": "too_close"}
    found = read({"engine": ENGINE, "adapters": [close]}, "v4")
    assert (found.refused, found.undecided, found.candidate_ready) == ("", True, False)
    other = {"version": "v5", "state": "elsewhere", "reason": "its base"}
    found = read({"engine": ENGINE, "adapters": [other]}, "v5")
    assert (found.refused, found.elsewhere, found.candidate_ready) == ("", True, False)
    assert "its base" in found.detail
    down = read({"engine": {**ENGINE, "ready": False}, "adapters": adapters}, "v1")
    assert not down.candidate_ready


def test_what_an_agent_says_without_end_fits_into_a_decision() -> None:
    long = {"version": "v3", "state": "refused", "reason": "x" * 2_000_000}
    assert len(read({"engine": ENGINE, "adapters": [long]}, "v3").refused) == MAX_SAID


@pytest.mark.parametrize("body", [None, [], {}, {"engine": {"ready": 1, "generation": 1}}])
def test_what_is_no_agents_answer_is_refused(body: object) -> None:
    with pytest.raises(ValueError, match="engine"):
        read(body, "v1")


async def test_an_agent_that_fails_says_nothing_of_its_engine(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    broken = await serve("/v1/adapters", lambda _: web.Response(status=500))
    other = await serve("/v1/adapters", lambda _: web.Response(text="hello"))
    reports = await Agents(session, (broken, other, "http://127.0.0.1:1")).reports("v1")
    assert [report.ready for report in reports.values()] == [None, None, None]
    assert all(report.detail for report in reports.values())


async def test_an_agent_is_asked_once_for_all_candidates(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    asked: list[str] = []

    def answer(query: str) -> web.Response:
        asked.append(query)
        adapters = [{"version": "v2", "state": "ready"}]
        return web.json_response({"engine": ENGINE, "adapters": adapters})

    url = await serve("/v1/adapters", answer)
    reports = await Agents(session, (url,)).reports_of(["v1", "v2", "v3"])
    assert {name: of[url].candidate_ready for name, of in reports.items()} == {
        "v1": False,
        "v2": True,
        "v3": False,
    }
    assert len(asked) == 1


async def test_the_bases_are_those_that_engines_name(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    def engine(base: object) -> Callable[[str], web.Response]:
        return lambda _: web.json_response({"engine": {**ENGINE, "base_model": base}})

    urls = [await serve("/v1/adapters", engine(base)) for base in ("qwen", "qwen", "", None, 1)]
    odd = await serve("/v1/adapters", lambda _: web.json_response(["hello"]))
    found = await Agents(session, (*urls, odd, "http://127.0.0.1:1")).bases()
    assert found == {"qwen"}


async def test_scores_that_are_no_numbers_are_none(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    """A pair with such a score would be a tie, and a gate of ties passes."""
    url = await serve(
        "/v1/score", lambda _: web.json_response({"reward_model": "r", "scores": ["nan"]})
    )
    assert await Agents(session, (url,)).scores("m", [([], "Hello.")]) == ("", [])


@pytest.mark.parametrize("answer", [[], {"reward_model": "r1", "scores": [None]}, {"scores": 1}])
async def test_what_is_no_score_leaves_answers_unscored(
    session: aiohttp.ClientSession, serve: Callable[..., Any], answer: object
) -> None:
    url = await serve("/v1/score", lambda _: web.json_response(answer))
    assert await Agents(session, (url,)).scores("m", [([], "Hello.")]) == ("", [])


def _vector(**values: str) -> dict[str, Any]:
    result = [{"metric": {"instance": name}, "value": [1, one]} for name, one in values.items()]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


async def test_zeros_are_missing_until_every_router_was_scraped(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    seen: dict[str, str] = {"a": "1"}
    up: dict[str, str] = {}
    asked: list[str] = []

    def answer(query: str) -> web.Response:
        asked.append(query)
        found = up if query.startswith("ratchet_router_spool_bytes") else seen
        return web.json_response(_vector(**found))

    url = await serve("/api/v1/query", answer)
    prometheus = Prometheus(session, url)
    assert "no router" in await prometheus.zeros_missing("r")
    up.update(a="0", b="7")
    assert await prometheus.zeros_missing("r") == "routers whose zeros were not scraped yet: b"
    seen["b"] = "1"
    assert await prometheus.zeros_missing("r") == ""
    # Whatever Prometheus calls the scrape job.
    assert set(asked) == {
        "ratchet_router_spool_bytes{}",
        'ratchet_router_rollout_seen{rollout="r"}',
    }
    narrow = Prometheus(session, url, router_matchers='namespace="prod"')
    up.clear()
    assert 'namespace="prod"' in await narrow.zeros_missing("r")
    up.update(a="0")
    assert await narrow.zeros_missing("r") == ""
    assert asked[-2:] == [
        'ratchet_router_spool_bytes{namespace="prod"}',
        'ratchet_router_rollout_seen{namespace="prod",rollout="r"}',
    ]


def _matrix(values: object) -> dict[str, Any]:
    result = [{"metric": {"__name__": "x"}, "values": values}]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


async def test_samples_come_as_they_were_scraped(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    url = await serve(
        "/api/v1/query", lambda _: web.json_response(_matrix([[1.5, "2"], [2.5, "3"]]))
    )
    (series,) = await Prometheus(session, url).samples("x[1m]")
    assert series.samples == ((1.5, 2.0), (2.5, 3.0))
    assert series.name == "x"


@pytest.mark.parametrize("bad", ["NaN", "+Inf", "-1"])
async def test_a_bad_sample_spoils_its_series_at_its_time_and_no_more(
    session: aiohttp.ClientSession, serve: Callable[..., Any], bad: str
) -> None:
    values = [[1.0, "1"], [2.0, bad], [3.0, "4"]]
    url = await serve("/api/v1/query", lambda _: web.json_response(_matrix(values)))
    (series,) = await Prometheus(session, url).samples("x[1m]")
    assert (series.samples, series.spoiled) == (((1.0, 1.0), (3.0, 4.0)), None)
    values.append([4.0, bad])
    (series,) = await Prometheus(session, url).samples("x[1m]")
    assert (len(series.samples), series.spoiled) == (2, 4.0)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"status": "error", "error": "parse error"},
        {"status": "success"},
        {"status": "success", "data": {"resultType": "vector", "result": []}},
        {"status": "success", "data": {"resultType": "matrix", "result": {}}},
        {"status": "success", "data": {"resultType": "matrix", "result": [{"values": []}]}},
        _matrix("much"),
        _matrix([[1.0]]),
    ],
)
async def test_what_evidence_cannot_be_made_of_is_our_own_error(
    session: aiohttp.ClientSession, serve: Callable[..., Any], body: object
) -> None:
    url = await serve("/api/v1/query", lambda _: web.json_response(body))
    with pytest.raises(EvidenceUnavailable):
        await Prometheus(session, url).samples("x[1m]")


async def test_an_error_of_prometheus_without_end_fits_into_a_decision(
    session: aiohttp.ClientSession, serve: Callable[..., Any]
) -> None:
    said = {"status": "error", "error": "x" * 2_000_000}
    url = await serve("/api/v1/query", lambda _: web.json_response(said, status=400))
    with pytest.raises(EvidenceUnavailable) as raised:
        await Prometheus(session, url).samples("x[1m]")
    assert len(str(raised.value)) < 1_000


async def test_prometheus_being_away_is_our_own_error(session: aiohttp.ClientSession) -> None:
    with pytest.raises(EvidenceUnavailable):
        await Prometheus(session, "http://127.0.0.1:1").zeros_missing("r")
