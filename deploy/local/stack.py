"""A whole Ratchet on one machine: real Kafka, Redis, Prometheus, vLLM and every service.

    with Stack(run_dir, services=["router"], ports="free") as stack:
        stack.url("router")

Supervisord keeps the processes (`supervision`); this module decides ports, renders configuration,
starts in the order of dependence and waits for readiness. Calls block; nothing is built at import.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from deploy.local import configuration, supervision
from deploy.local.errors import NotRunning, ProcessNotReady, StackError
from deploy.local.ports import HOST, fixed_ports, free_ports, require_free, variable
from deploy.local.processes import ROOT, Fields, Process, Ready, Values, load, ordered, waves
from deploy.local.readiness import is_ready
from deploy.local.startup import Startup
from deploy.local.supervision import MARK, ProcessStatus, Supervisor

_ONCE_S = 120.0
_SHUTDOWN_S = 30.0
_LOG_LINES = 25


def _say(text: str) -> None:
    print(f"stack: {text}", flush=True)


class Stack:
    """One stack in one run directory.

    `services` names what to start (their dependencies come along; all by default). `processes`
    adds or changes declarations, by the fields of `processes.Process`. `env` goes to every process.
    `ports` is "fixed" (environment, then defaults) or "free". With `keep` the stack outlives this
    Python process, as `make up` wants; else it ends with it, however that ends. A start with
    `fresh` deletes the data that an earlier stack left in the directory.

    Leaving a `with` block takes down what this object started, never a stack that ran before, and
    deletes its data unless `keep` was set.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        services: Sequence[str] | None = None,
        processes: Mapping[str, Fields] | None = None,
        env: Mapping[str, str] | None = None,
        ports: Literal["fixed", "free"] = "fixed",
        scrape_interval: str = "5s",
        keep: bool = False,
        fresh: bool = False,
        say: Callable[[str], None] = _say,
    ) -> None:
        self.run_dir = Path(run_dir).resolve()
        self._changes = {name: dict(fields) for name, fields in (processes or {}).items()}
        self._declared = load(self._changes)
        wanted = services
        if wanted is None:
            wanted = [name for name, process in self._declared.items() if process.default]
        self.services = ordered(self._declared, wanted)
        self._env = dict(env or {})
        self._free = ports == "free"
        self._scrape_interval = scrape_interval
        self._keep = keep
        self._fresh = fresh
        self._say = say
        self._supervisor = Supervisor(self.run_dir)
        self._further: dict[str, tuple[str, ...]] = {}
        self._targets_file = self.run_dir / "config/targets.json"
        self.ports: dict[str, int] = {}
        self._started = False

    @property
    def started(self) -> bool:
        """Whether it was this object that started the stack, and has not taken it down since."""
        return self._started

    @classmethod
    def attach(cls, run_dir: Path | str, *, say: Callable[[str], None] = _say) -> Self:
        """The stack that runs in a directory. Raises `NotRunning` when there is none."""
        path = Path(run_dir).resolve() / "stack.json"
        try:
            saved = json.loads(path.read_text())
        except FileNotFoundError:
            raise NotRunning(f"no stack runs in {path.parent}: make up") from None
        stack = cls(
            run_dir,
            services=saved["services"],
            processes=saved["processes"],
            env=saved["env"],
            scrape_interval=saved["scrape_interval"],
            keep=True,
            say=say,
        )
        stack.ports = saved["ports"]
        return stack

    # ── the whole ──────────────────────────────────────────────────────────────────────────────

    def up(self) -> Self:
        """Starts what does not run yet and returns when everything is ready.

        Raises `StackPortTaken`, `ProcessNotReady` (with the end of the log that explains it) or another
        `StackError`. What started stays, for its logs; `down` ends it.
        """
        if self._supervisor.is_running():
            saved = json.loads((self.run_dir / "stack.json").read_text())
            if saved["services"] != self.services or saved["processes"] != self._changes:
                raise StackError(
                    f"another choice of processes runs in {self.run_dir}: make down first, "
                    "or give this one its own --run-dir"
                )
            self.ports = saved["ports"]
        else:
            self._prepare_directory()
            self._started = True
            self._supervisor.start(bound=not self._keep)
        started = time.monotonic()
        self._startup().bring_up(self.services)
        self._say(f"ready in {time.monotonic() - started:.0f} s ({self.run_dir})")
        return self

    def down(self, *, delete_data: bool = False) -> None:
        """Stops this stack's processes, last started first, whoever started them.

        Logs stay, and so do data (Kafka's log, adapters, datasets) without `delete_data`.
        """
        if self._supervisor.is_running():
            for wave in waves(self._declared, self._declared):
                staying = [name for name in wave if not self._declared[name].once]
                self._supervisor.stop_processes(staying, self._stop_s(staying))
            self._supervisor.shutdown(_SHUTDOWN_S)
        if left := supervision.sweep(self.run_dir):
            self._say(f"ended {left} processes that did not stop by themselves")
        supervision.socket_path(self.run_dir).unlink(missing_ok=True)
        for name in ("config", "processes", *(("data",) if delete_data else ())):
            shutil.rmtree(self.run_dir / name, ignore_errors=True)
        for name in ("stack.json", "supervisord.conf", "supervisord.pid"):
            (self.run_dir / name).unlink(missing_ok=True)
        self._started = False

    def __enter__(self) -> Self:
        try:
            return self.up()
        except BaseException:
            self._end()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    # ── one process ────────────────────────────────────────────────────────────────────────────

    def start(self, name: str) -> None:
        """Starts a declared process, and what it comes after, and waits until it is ready."""
        self._startup().bring_up(ordered(self._declared, [name]))

    def stop(self, name: str) -> None:
        """Stops a process with its children; it stays down until `start`."""
        self._supervisor.stop_processes([self._known(name)], self._stop_s([name]))

    def restart(self, name: str, env: Mapping[str, str] | None = None) -> None:
        """Stops and starts a process, from now on with these variables besides."""
        self.stop(name)
        if env:
            fields = self._changes.setdefault(name, {})
            fields["env"] = {**fields.get("env", {}), **env}
            self._declared = load(self._changes)
            self._write_spec(name, self._declared[name])
            self._save()
        self.start(name)

    def kill(self, name: str, signal_number: signal.Signals = signal.SIGKILL) -> int:
        """Signals the process itself, not its children, and returns the pid it had.

        Supervisord starts it again; `wait_ready` waits for that.
        """
        pid = self.pid(name)
        os.kill(pid, signal_number)
        return pid

    def pid(self, name: str) -> int:
        """Process id. Raises `NotRunning` when it has none now."""
        if pid := self.seen()[self._known(name)].pid:
            return pid
        raise NotRunning(f"{name} does not run now; see {self.log(name)}")

    def wait_ready(self, name: str, timeout_s: float | None = None) -> None:
        """Waits until a process is ready, by default as long as its declaration allows."""
        self._startup().wait(self._known(name), timeout_s)

    def scrape(self, job: str, addresses: Sequence[str]) -> None:
        """Lets Prometheus scrape these `host:port` besides, as `job`, in place of its earlier ones."""
        self._further[job] = tuple(addresses)
        # Replaced whole: Prometheus reads the file the moment it changes.
        whole = self._targets_file.with_suffix(".new")
        whole.write_text(configuration.targets_json(self._further))
        whole.replace(self._targets_file)

    def is_ready(self, name: str) -> bool:
        """Whether a process answers its readiness question now."""
        return is_ready(self._filled(self._known(name)))

    def seen(self) -> dict[str, ProcessStatus]:
        """What supervisord knows of each process that stays."""
        return self._supervisor.seen()

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return supervision.log_path(self.run_dir, self._known(name))

    def log_end(self, name: str, lines: int = _LOG_LINES) -> str:
        """The last lines of a process's log."""
        try:
            with self.log(name).open("rb") as file:
                file.seek(max(0, self.log(name).stat().st_size - 400 * lines))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    # ── addresses ──────────────────────────────────────────────────────────────────────────────

    def url(self, port: str) -> str:
        """`http://host:port` of a named port (`router`, `vllm`, `prometheus` …)."""
        return f"http://{self.address(port)}"

    def address(self, port: str) -> str:
        """`host:port` of a named port."""
        try:
            return f"{HOST}:{self.ports[port]}"
        except KeyError:
            raise StackError(
                f"no port is called {port!r}; there are {sorted(self.ports)}"
            ) from None

    def ports_of(self, name: str) -> list[str]:
        """The names of the ports that a process listens on."""
        return list(self._declared[self._known(name)].ports)

    def environment(self) -> dict[str, str]:
        """The variables by which a program finds this stack; every process of it gets them."""
        variables = {variable(name): str(number) for name, number in self.ports.items()}
        variables["RATCHET_PROFILE"] = "local"
        variables["RATCHET_KAFKA_BOOTSTRAP"] = self.address("kafka")
        variables["RATCHET_REDIS_URL"] = f"redis://{self.address('redis')}/0"
        variables["RATCHET_PROMETHEUS_URL"] = self.url("prometheus")
        variables["RATCHET_ADAPTERS_URI"] = (self.run_dir / "data/adapters").as_uri()
        variables["RATCHET_DATASETS_URI"] = (self.run_dir / "data/datasets").as_uri()
        return {**variables, **self._env}

    # ── inside ─────────────────────────────────────────────────────────────────────────────────

    def _end(self) -> None:
        if self._started:
            self.down(delete_data=not self._keep)

    def _prepare_directory(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if left := supervision.sweep(self.run_dir):
            self._say(f"ended {left} processes of an earlier stack in {self.run_dir}")
        names = {
            name: default for p in self._declared.values() for name, default in p.ports.items()
        }
        if self._free:
            self.ports = free_ports(names)
        else:
            self.ports = fixed_ports(names, os.environ)
            used = {name for service in self.services for name in self._declared[service].ports}
            require_free({name: self.ports[name] for name in used})
        for name in ("logs", *(("data",) if self._fresh else ())):
            shutil.rmtree(self.run_dir / name, ignore_errors=True)
        for name in ("logs", "config", "processes", "data"):
            (self.run_dir / name).mkdir(parents=True, exist_ok=True)
        data, config = self.run_dir / "data", self.run_dir / "config"
        selected = {name: self._declared[name] for name in self.services}
        prometheus = configuration.prometheus_yml(
            selected, self.ports, self._scrape_interval, self._targets_file, os.environ
        )
        (config / "prometheus.yml").write_text(prometheus)
        self._targets_file.write_text(configuration.targets_json(self._further))
        (config / "kafka.properties").write_text(configuration.kafka_properties(data, self.ports))
        (config / "redis.conf").write_text(configuration.redis_conf(data, self.ports))
        (config / "alertmanager.yml").write_text(configuration.alertmanager_yml())
        for name, process in self._declared.items():
            self._write_spec(name, process)
        staying = [
            (name, self._declared[name])
            for name in ordered(self._declared, self._declared)
            if not self._declared[name].once
        ]
        (self.run_dir / "supervisord.conf").write_text(supervision.render(self.run_dir, staying))
        self._save()

    def _save(self) -> None:
        saved = {
            "run_dir": str(self.run_dir),
            "ports": self.ports,
            "urls": {name: self.url(name) for name in self.ports},
            "services": self.services,
            "processes": self._changes,
            "env": self._env,
            "scrape_interval": self._scrape_interval,
        }
        (self.run_dir / "stack.json").write_text(json.dumps(saved, indent=2))

    def _write_spec(self, name: str, process: Process) -> None:
        values = Values(self.run_dir, self.ports, HOST)
        own_data = self.run_dir / "data" / name
        own_data.mkdir(exist_ok=True)
        argv = [values.fill(part, name) for part in process.argv()]
        # A module's interpreter comes first, so that what it starts by name is its environment's.
        programs = [str(Path(argv[0]).parent)] if process.module else []
        env = {
            **_inherited(),
            "PATH": ":".join([*programs, os.environ.get("PATH", os.defpath), "/usr/sbin"]),
            "PYTHONUNBUFFERED": "1",
            MARK: str(self.run_dir),
            # Without this, programs that set their own title overwrite the mark.
            "SPT_NOENV": "1",
            **self.environment(),
            "RATCHET_DATA_DIR": str(own_data),
            **{key: values.fill(value, name) for key, value in process.env.items()},
        }
        spec = supervision.spec(self.run_dir, name)
        spec.touch(mode=0o600)
        spec.write_text(json.dumps({"argv": argv, "env": env, "cwd": str(ROOT)}))

    def _startup(self) -> Startup:
        return Startup(
            self._supervisor,
            self._declared,
            filled=self._filled,
            begin=self._begin,
            log_end=self.log_end,
            say=self._say,
        )

    def _begin(self, name: str) -> None:
        process = self._declared[name]
        values = Values(self.run_dir, self.ports, HOST)
        if process.once:
            self._run_once(name, [values.fill(part, name) for part in process.argv()])
            return
        prepare = process.prepare
        if prepare and not Path(values.fill(prepare.unless, name)).exists():
            self._run_once(name, [values.fill(part, name) for part in prepare.command])
        self._supervisor.start_process(name)

    def _filled(self, name: str) -> Ready:
        ready = self._declared[name].ready
        if ready is None:
            raise StackError(f"{name} runs once and ends; there is nothing to wait for")
        values = Values(self.run_dir, self.ports, HOST)
        ports = {probe: getattr(ready, probe) for probe in ("tcp", "redis", "kafka")}
        return ready.model_copy(
            update={
                "http": values.fill(ready.http, name),
                **{probe: self.address(port) for probe, port in ports.items() if port},
            }
        )

    def _run_once(self, name: str, argv: Sequence[str]) -> None:
        spec = json.loads(supervision.spec(self.run_dir, name).read_text())
        with self.log(name).open("ab") as log:
            try:
                done = subprocess.run(
                    argv,
                    cwd=spec["cwd"],
                    env=spec["env"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=_ONCE_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise self._failed_once(name, f"did not end within {_ONCE_S:.0f} s") from None
            except FileNotFoundError:
                raise StackError(f"{argv[0]} is not installed: run make setup") from None
        if done.returncode != 0:
            raise self._failed_once(name, f"ended with exit status {done.returncode}")

    def _failed_once(self, name: str, why: str) -> ProcessNotReady:
        return ProcessNotReady(f"{name} {why}. The end of its log:\n{self.log_end(name)}")

    def _stop_s(self, names: Sequence[str]) -> float:
        # Supervisord kills what did not stop in its own time; a little more for that to be seen.
        return 10.0 + max((self._declared[name].stop_s for name in names), default=0)

    def _known(self, name: str) -> str:
        if name not in self._declared:
            raise StackError(f"no process is called {name!r}; there are {sorted(self._declared)}")
        return name


def _inherited() -> dict[str, str]:
    """The process's own environment, without where another stack listens."""
    return {
        key: value
        for key, value in os.environ.items()
        if key.endswith("_OPERATIONS_PORT")
        or not (key.startswith("RATCHET_") and key.endswith(("_PORT", "_PORT_BASE")))
    }
