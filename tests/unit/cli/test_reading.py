"""Settings and metrics as the command reads them."""

from __future__ import annotations

import pytest

from deploy.local.ports import fixed_ports
from deploy.local.processes import load
from services.cli.errors import CliError, Exit
from services.cli.output import percent, print_table, show
from services.cli.settings import DEFAULT_PORTS, load_settings
from services.cli.status import total


def test_a_url_goes_before_a_port_and_a_port_before_the_default() -> None:
    settings = load_settings(
        {
            "RATCHET_ROUTER_URL": "http://r:1/",
            "RATCHET_ROUTER_PORT": "5",
            "RATCHET_ROLLOUT_PORT": "7",
        }
    )
    assert settings.url("router") == "http://r:1"
    assert settings.url("rollout") == "http://127.0.0.1:7"
    assert settings.url("feedback") == "http://127.0.0.1:8081"


def test_metrics_are_read_where_the_operations_port_is() -> None:
    settings = load_settings(
        {"RATCHET_ROUTER_URL": "https://r:1/base", "RATCHET_ROUTER_OPERATIONS_PORT": "9100"}
    )
    assert settings.metrics_url("router") == "https://r:9100/base/metrics"
    assert settings.metrics_url("feedback") == "http://127.0.0.1:8081/metrics"


@pytest.mark.parametrize("environ", [{}, {"RATCHET_PORT_BASE": "21000"}])
def test_the_command_finds_the_local_stack_where_it_listens(environ: dict[str, str]) -> None:
    environ |= {"RATCHET_ROLLOUT_PORT": "30000"}
    declared = {name: port for process in load().values() for name, port in process.ports.items()}
    ports = fixed_ports(declared, environ)
    settings = load_settings(environ)
    assert dict(settings.urls) == {
        service: f"http://127.0.0.1:{ports[service]}" for service in DEFAULT_PORTS
    }
    assert settings.kafka.kafka_bootstrap == f"127.0.0.1:{ports['kafka']}"
    assert settings.redis.redis_url == f"redis://127.0.0.1:{ports['redis']}/0"


def test_a_port_base_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(CliError, match="RATCHET_PORT_BASE is '65530'"):
        load_settings({"RATCHET_PORT_BASE": "65530"})


def test_tenants_are_a_list() -> None:
    assert load_settings({"RATCHET_TENANTS": "a,b"}).tenants == ("a", "b")


@pytest.mark.parametrize("given", ["team a", "a,b/c", "ä", "a" * 129])
def test_a_tenant_that_no_topic_can_carry_is_refused(given: str) -> None:
    with pytest.raises(CliError, match=r"RATCHET_TENANTS: .* is no tenant's name") as raised:
        load_settings({"RATCHET_TENANTS": given})
    assert raised.value.status == Exit.usage


def test_samples_are_summed_by_metric() -> None:
    text = '# HELP a b\nspool 1\nspool{x="1"} 2.5\nspool_bytes 100\nspool{x="}"} 1e2\n'
    assert total(text, "spool") == pytest.approx(103.5)
    assert total(text, "other") is None
    by_kind = 'rows{kind="pairs",model="m"} 3.0\nrows{kind="judge_pairs",model="m"} 30.0\n'
    assert total(by_kind, 'rows{kind="pairs"}') == pytest.approx(3.0)
    assert total(by_kind, 'rows{kind="judge_pairs"}') == pytest.approx(30.0)
    assert total(by_kind, 'rows{kind="other"}') is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (True, "yes"),
        (0.123456, "0.1235"),
        ({"a": 1, "b": None}, '{"a": 1}'),
        ("x", "x"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert show(value) == shown


def test_weights_are_percentages() -> None:
    assert [percent(weight) for weight in (0, 500, 1, 10_000)] == ["0 %", "5 %", "0.01 %", "100 %"]


def test_a_table_in_a_pipe_folds_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    long = [f"{letter * 90}-v1.0" for letter in "abc"]
    print_table("Long", ("one", "two", "three"), [long])
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in long)
