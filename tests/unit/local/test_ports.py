from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.errors import BadDeclaration, StackPortTaken
from deploy.local.ports import HOST, fixed_ports, free_ports, require_free, variable

DEFAULTS = {"kafka": 9092, "kafka-controller": 9094, "router": 8080}


def test_defaults_hold_without_environment():
    assert fixed_ports(DEFAULTS, {}) == DEFAULTS


def test_a_base_moves_every_port_and_one_variable_moves_one():
    environ = {"RATCHET_PORT_BASE": "21000", "RATCHET_KAFKA_CONTROLLER_PORT": "5555"}
    assert fixed_ports(DEFAULTS, environ) == {
        "kafka": 21000,
        "kafka-controller": 5555,
        "router": 21002,
    }


@pytest.mark.parametrize("value", ["http", "0", "-1", "70000", "8080.0", "８０８０"])
def test_a_value_that_is_no_port_is_refused_by_name(value):
    with pytest.raises(BadDeclaration, match=r"RATCHET_ROUTER_PORT.*1 to 65000"):
        fixed_ports(DEFAULTS, {"RATCHET_ROUTER_PORT": value})


def test_two_names_on_one_port_are_refused():
    with pytest.raises(BadDeclaration, match="kafka and router"):
        fixed_ports(DEFAULTS, {"RATCHET_ROUTER_PORT": "9092"})


@given(st.sets(st.from_regex(r"[a-z]{1,8}", fullmatch=True), max_size=20))
def test_free_ports_are_distinct_and_below_the_range_for_outgoing_connections(names):
    ports = free_ports(names)
    assert set(ports) == names
    assert len(set(ports.values())) == len(names)
    assert all(20_000 <= port < 32_000 for port in ports.values())


def test_a_held_port_is_named_with_what_to_do():
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        taken = {"router": holder.getsockname()[1]}
        with pytest.raises(StackPortTaken, match=r"router \d+.*RATCHET_PORT_BASE"):
            require_free(taken)


def test_the_variable_of_a_port():
    assert variable("kafka-controller") == "RATCHET_KAFKA_CONTROLLER_PORT"
