from __future__ import annotations

import configparser
from pathlib import Path

import pytest
import yaml

from deploy.local.configuration import kafka_properties, prometheus_yml
from deploy.local.errors import BadDeclaration
from deploy.local.ports import HOST
from deploy.local.processes import Values, load, ordered, waves
from deploy.local.supervision import render, socket_path

SERVICES = {"router", "feedback", "rollout", "inference", "aggregator", "training"}


def test_every_service_is_declared_with_readiness_and_metrics():
    processes = load()
    assert set(processes) > SERVICES
    for name in SERVICES:
        assert processes[name].module == f"services.{name}"
        assert processes[name].ready is not None
        assert processes[name].metrics[0].port == name


def test_every_placeholder_of_the_declaration_can_be_filled():
    processes = load()
    ports = {name: 1 for process in processes.values() for name in process.ports}
    values = Values(Path("/run-dir"), ports, HOST)
    for name, process in processes.items():
        texts = [*process.argv(), *process.env.values()]
        if process.ready:
            texts.append(process.ready.http)
        assert all("${" not in values.fill(text, name) for text in texts)


def test_dependencies_come_first_and_along():
    order = ordered(load(), ["rollout"])
    assert set(order) == {"kafka", "redis", "prometheus", "topics", "rollout"}
    assert order.index("kafka") < order.index("topics") < order.index("rollout")


def test_waves_stop_what_depends_before_what_it_depends_on():
    processes = load()
    place = {n: i for i, wave in enumerate(waves(processes, processes)) for n in wave}
    assert set(place) == set(processes)
    for name, process in processes.items():
        assert all(place[name] < place[earlier] for earlier in process.after)


def test_a_stack_can_add_a_process_and_change_another():
    added = {"command": ["true"], "ports": {"proxy": 1}, "ready": {"tcp": "proxy"}}
    processes = load(
        {"proxy": added, "router": {"env": {"RATCHET_ROUTER_ENGINES": "${url.proxy}"}}}
    )
    assert processes["proxy"].argv() == ("true",)
    assert processes["router"].env["RATCHET_ROUTER_ENGINES"] == "${url.proxy}"
    assert processes["router"].module == "services.router"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": {"comand": ["x"]}}, r"router\.comand"),
        ({"x": {"about": "nothing to run"}}, "either a command or a module"),
        ({"x": {"command": ["true"]}}, "needs ready"),
        ({"router": {"after": ["nobody"]}}, r"router\.after.*nobody"),
        ({"router": {"ready": {"http": "a", "tcp": "b"}}}, "exactly one"),
    ],
)
def test_a_wrong_declaration_names_field_and_rule(changes, message):
    if "ready" in changes.get("router", {}):
        changes = {"router": {**changes["router"]}}
    with pytest.raises(BadDeclaration, match=message):
        load(changes)


def test_a_circle_is_shown():
    processes = load({"kafka": {"after": ["router"]}})
    with pytest.raises(BadDeclaration, match="kafka → router → topics → kafka"):
        ordered(processes, ["kafka"])


def test_an_unknown_placeholder_is_named():
    values = Values(Path("/run-dir"), {"router": 1}, HOST)
    with pytest.raises(BadDeclaration, match=r"port\.nobody"):
        values.fill("${port.nobody}", "x")
    assert values.fill("$${HOME} ${name} ${port.router}", "x") == "${HOME} x 1"


def test_prometheus_scrapes_each_process_under_its_name_and_replicas_under_one():
    ports = {"router": 1, "second": 2, "alertmanager": 3}
    processes = load(
        {
            "router-2": {
                "module": "services.router",
                "ports": {"second": 2},
                "ready": {"tcp": "second"},
                "metrics": [{"port": "second", "job": "router"}],
            }
        }
    )
    chosen = {name: processes[name] for name in ("router", "router-2", "alertmanager")}
    file = Path("/run-dir/targets.json")
    content = yaml.safe_load(prometheus_yml(chosen, ports, "1s", file, {}))
    jobs = {job["job_name"]: job for job in content["scrape_configs"]}
    assert set(jobs) == {"router", "further"}
    assert jobs["router"]["static_configs"] == [{"targets": ["127.0.0.1:1", "127.0.0.1:2"]}]
    assert content["global"]["scrape_interval"] == "1s"


def test_prometheus_scrapes_every_process_of_a_service_on_its_own_port():
    environ = {"RATCHET_ROUTER_PROCESSES": "2", "RATCHET_ROUTER_OPERATIONS_PORT": "9100"}
    chosen = {"router": load()["router"]}
    file = Path("/run-dir/targets.json")
    content = yaml.safe_load(prometheus_yml(chosen, {"router": 1}, "1s", file, environ))
    router = next(job for job in content["scrape_configs"] if job["job_name"] == "router")
    assert router["static_configs"] == [{"targets": ["127.0.0.1:9100", "127.0.0.1:9101"]}]


def test_kafka_never_makes_topics_by_default():
    text = kafka_properties(Path("/data"), {"kafka": 1, "kafka-controller": 2})
    assert "auto.create.topics.enable=false" in text
    assert "log.dirs=/data/kafka" in text


def test_supervisord_configuration_survives_percent_signs_and_spaces():
    run_dir = Path("/a b/50%")
    parser = configparser.ConfigParser()
    parser.read_string(render(run_dir, [("redis", load()["redis"])]))
    section = parser["program:redis"]
    assert section["stdout_logfile"] == "/a b/50%/logs/redis.log"
    assert '"/a b/50%/processes/redis.json"' in section["command"]


def test_the_control_socket_fits_a_socket_path():
    assert socket_path(Path("/short")) == Path("/short/supervisord.sock")
    assert len(str(socket_path(Path("/" + "long/" * 40)))) < 100
