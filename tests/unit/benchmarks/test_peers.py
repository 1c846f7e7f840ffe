"""Peers of the router's benchmark: their configuration, and what is said of the distance to them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.peers import GOAL_TIMES, LOOPBACK, NODE, PEERS
from benchmarks.proxy_load import LOAD, Load, Row, chat_load, wrk
from benchmarks.router import distances, verdicts
from benchmarks.stub_engine import serve_stub


def config(key: str, folder: Path, name: str) -> str:
    """What a peer's arguments left in a folder."""
    arguments = PEERS[key].arguments(folder, 1, 2, "127.0.0.1", 3)
    assert str(folder / name) in arguments
    return (folder / name).read_text()


def rows(**core_rps: float) -> dict[str, Row]:
    empty = Row(name="", rps=1.0, p99_ms=1.0, alone_p50_ms=1.0, core_rps=None)
    return {key: replace(empty, core_rps=value) for key, value in core_rps.items()}


def test_envoy_splits_traffic(tmp_path: Path) -> None:
    read: dict[str, Any] = yaml.safe_load(config("envoy", tmp_path, "envoy.yaml"))
    (listener,) = read["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    clusters = route["route"]["weighted_clusters"]["clusters"]
    assert [one["weight"] for one in clusters] == [80, 20]


def test_rolter_splits_traffic(tmp_path: Path) -> None:
    (route,) = tomllib.loads(config("rolter", tmp_path, "rolter.toml"))["routes"]
    assert route["strategy"] == "weighted"
    assert [target["weight"] for target in route["targets"]] == [80, 20]


def test_portkey_splits_traffic_by_what_each_request_carries() -> None:
    headers = PEERS["portkey"].headers("127.0.0.1", 3)
    read = json.loads(headers["x-portkey-config"])
    assert read["strategy"] == {"mode": "loadbalance"}
    assert [target["weight"] for target in read["targets"]] == [0.8, 0.2]
    assert {target["custom_host"] for target in read["targets"]} == {"http://127.0.0.1:3/v1"}


@pytest.mark.parametrize("named", ["0", "{ port: 0 }", "0, undefined"])
def test_servers_on_node_that_name_no_address_are_on_loopback(named: str) -> None:
    script = f"""
        const server = require("node:net").createServer();
        server.listen({named}, () => {{ console.log(server.address().address); server.close(); }});
    """
    command = [str(NODE), "--require", str(LOOPBACK), "--eval", script]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert said.stdout.strip() == "127.0.0.1"


def test_headers_are_quoted_in_the_script_of_wrk() -> None:
    script = chat_load({"x-one": '{"a": "100%"}'})
    assert '{["content-type"] = "application/json", ["x-one"] = "{\\"a\\": \\"100%\\"}"}' in script


@pytest.mark.parametrize("key", PEERS)
def test_a_peer_that_is_not_installed_has_no_command(key: str) -> None:
    assert replace(PEERS[key], program="nowhere/none").command() is None


def test_a_peer_on_node_has_a_goal_and_others_a_distance() -> None:
    measured = rows(ratchet=5_000, envoy=20_000, smg=10_000, portkey=5_000 / GOAL_TIMES + 1)
    assert distances(measured) == [
        "Envoy: 4.0 × ours by CPU second",
        "SMG: 2.0 × ours by CPU second",
    ]
    assert (False, "5.0 × Portkey by CPU second (goal 5 ×)") in verdicts(measured, 1.0)
    measured |= rows(portkey=1_000)
    assert (True, "5.0 × Portkey by CPU second (goal 5 ×)") in verdicts(measured, 1.0)


async def test_the_stub_names_the_model_that_the_load_asks_for() -> None:
    server, _ = await serve_stub("127.0.0.1", 0)
    async with server, httpx.AsyncClient() as client:
        port = server.sockets[0].getsockname()[1]
        listed = (await client.get(f"http://127.0.0.1:{port}/v1/models")).json()
    (name,) = (model["id"] for model in listed["data"])
    assert f'"model":"{name}"' in chat_load({})


async def test_a_proxy_that_answers_nobody_within_the_time_has_a_rate_of_zero(
    tmp_path: Path,
) -> None:
    script = tmp_path / "chat.lua"
    script.write_text(LOAD)
    server, _ = await serve_stub("127.0.0.1", 0, delay_s=60)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        load = Load(script, 1, 1)
        found = await asyncio.to_thread(wrk, url, load, 1, 1, silent=True)
        assert (found["requests"], found["bad"]) == (0, 0)
        with pytest.raises(AssertionError, match="not one answer"):
            await asyncio.to_thread(wrk, url, load, 1, 1)
