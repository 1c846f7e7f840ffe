"""The declaration of a stack's processes: `processes.yaml`, plus what one stack adds or changes."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from deploy.local.errors import BadDeclaration

ROOT = Path(__file__).resolve().parents[2]
DECLARATION = Path(__file__).with_name("processes.yaml")

Fields = Mapping[str, Any]
"""A process as a file or a caller writes it: the fields of `Process`, not yet checked."""

_FILE = TypeAdapter(dict[str, Fields])

# Which interpreter a module runs in; see requirements/.
INTERPRETERS = {
    "services": ROOT / ".venv/bin/python",
    "ml": ROOT / ".venv-ml/bin/python",
}


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ready(_Declared):
    """How readiness is seen: `http` (a 2xx from this URL), or a protocol's own hello on a port."""

    http: str = ""
    tcp: str = ""
    redis: str = ""
    kafka: str = ""
    timeout_s: float = 120.0

    @model_validator(mode="after")
    def _one_probe(self) -> Ready:
        if sum(bool(probe) for probe in (self.http, self.tcp, self.redis, self.kafka)) != 1:
            raise ValueError("ready needs exactly one of http, tcp, redis, kafka")
        return self


class ScrapeTarget(_Declared):
    """A Prometheus target: the port's name, the path and the job label."""

    port: str
    path: str = "/metrics"
    job: str = ""


class Prepare(_Declared):
    """A command to run before the first start, left out once `unless` exists."""

    command: tuple[str, ...]
    unless: str


class Process(_Declared):
    """One process of a stack. Strings may hold the placeholders of `Values`."""

    about: str = ""
    command: tuple[str, ...] = ()
    module: str = ""
    python: Literal["services", "ml"] = "services"
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    ports: dict[str, int] = Field(default_factory=dict)
    ready: Ready | None = None
    metrics: tuple[ScrapeTarget, ...] = ()
    after: tuple[str, ...] = ()
    prepare: Prepare | None = None
    once: bool = False
    default: bool = True
    stop_signal: Literal["TERM", "INT", "QUIT", "KILL"] = "TERM"
    stop_s: int = 15

    @model_validator(mode="after")
    def _runnable(self) -> Process:
        if bool(self.command) == bool(self.module):
            raise ValueError("a process has either a command or a module")
        if not self.once and self.ready is None:
            raise ValueError("a process that stays needs ready (once: true for one that ends)")
        return self

    def argv(self) -> tuple[str, ...]:
        """The command line, placeholders not yet filled in."""
        if self.command:
            return self.command
        return (str(INTERPRETERS[self.python]), "-m", self.module, *self.arguments)


class _Placeholder(string.Template):
    idpattern = r"[a-z]+(?:\.[a-z0-9-]+)?"


class Values:
    """What `${…}` means in a declaration.

    `${root}` repository, `${run}` run directory, `${data}` the stack's data, `${config}` rendered
    configuration, `${name}` the process, `${port.NAME}` a port, `${host.NAME}` host:port,
    `${url.NAME}` http://host:port.
    """

    def __init__(self, run_dir: Path, ports: Mapping[str, int], host: str) -> None:
        self._values: dict[str, str] = {
            "root": str(ROOT),
            "run": str(run_dir),
            "data": str(run_dir / "data"),
            "config": str(run_dir / "config"),
        }
        for name, number in ports.items():
            self._values[f"port.{name}"] = str(number)
            self._values[f"host.{name}"] = f"{host}:{number}"
            self._values[f"url.{name}"] = f"http://{host}:{number}"

    def fill(self, text: str, process: str) -> str:
        """The text with its placeholders filled in; an unknown one raises `BadDeclaration`."""
        try:
            return _Placeholder(text).substitute(self._values, name=process)
        except KeyError as missing:
            raise BadDeclaration(f"{process}: nothing is called {missing} in {text!r}") from None
        except ValueError as error:
            raise BadDeclaration(f"{process}: {text!r}: {error} (write $$ for a dollar)") from None


def load(changes: Mapping[str, Fields] | None = None) -> dict[str, Process]:
    """All processes of `processes.yaml`, with `changes` merged over them (new names are added).

    Mappings merge, everything else replaces. Raises `BadDeclaration` with the field and the rule.
    """
    declared = read(DECLARATION)
    for name, change in (changes or {}).items():
        declared[name] = _merged(declared.get(name, {}), change)
    processes: dict[str, Process] = {}
    for name, fields in declared.items():
        try:
            processes[name] = Process.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join((name, *(str(part) for part in first["loc"])))
            raise BadDeclaration(f"process file: {where}: {first['msg']}") from None
    for name, process in processes.items():
        if unknown := set(process.after) - set(processes):
            raise BadDeclaration(f"process file: {name}.after: nothing is called {sorted(unknown)}")
    return processes


def read(path: Path) -> dict[str, Fields]:
    """A process file as it stands. Raises `BadDeclaration` when it is no mapping of mappings."""
    try:
        return _FILE.validate_python(yaml.safe_load(path.read_text()))
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise BadDeclaration(f"{path} must map process names to their fields: {error}") from None


def ordered(processes: Mapping[str, Process], wanted: Iterable[str]) -> list[str]:
    """The wanted processes and all they come after, dependencies first.

    Raises `BadDeclaration` for an unknown name or a circle.
    """
    order: list[str] = []
    open_names: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name not in processes:
            raise BadDeclaration(f"no process is called {name!r}; there are {sorted(processes)}")
        if name in open_names:
            raise BadDeclaration(
                f"processes wait for each other: {' → '.join([*open_names, name])}"
            )
        open_names.append(name)
        for earlier in processes[name].after:
            visit(earlier)
        open_names.pop()
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def waves(processes: Mapping[str, Process], names: Iterable[str]) -> list[list[str]]:
    """The names in groups that may stop at once: no process is in an earlier group than one that
    comes after it. Starting goes the other way round.
    """
    depth: dict[str, int] = {}
    for name in ordered(processes, names):
        depth[name] = 1 + max((depth[earlier] for earlier in processes[name].after), default=-1)
    deepest = max(depth.values(), default=-1)
    return [[n for n, at in depth.items() if at == level] for level in range(deepest, -1, -1)]


def _merged(base: Fields, change: Fields) -> Fields:
    result = {**base}
    for key, value in change.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            result[key] = _merged(cast("Fields", below), cast("Fields", value))
        else:
            result[key] = value
    return result
