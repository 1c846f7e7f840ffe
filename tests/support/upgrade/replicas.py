"""Stack of an upgrade: two replicas of what clients ask, before a stub engine and an agent double."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from deploy.local.stack import Stack
from tests.support.rollout_harness import HOST

MODEL = "assistant"
STABLE, CANDIDATE = f"{MODEL}-v1.0", f"{MODEL}-v1.1"
ROUTERS, FEEDBACKS = ("router", "router-b"), ("feedback", "feedback-b")
WORKERS = ("aggregator", "intake", "rollout", "training")
_ENGINE = {"RATCHET_ROUTER_ENGINES": "${url.engine}"}
_AGGREGATOR = {"RATCHET_AGGREGATOR_SESSION_TIMEOUT_S": "6"}
KEPT_DAYS = 3650
"""How old the fixture's events may be: otherwise rows go, and submissions are refused, by age."""
_KEEPING = {
    "aggregator": {"RATCHET_AGGREGATOR_HORIZON_DAYS": str(KEPT_DAYS)},
    **{name: {"RATCHET_FEEDBACK_MAX_AGE_DAYS": str(KEPT_DAYS)} for name in (*FEEDBACKS, "intake")},
}
_TRAINING = {"RATCHET_TRAINING_MIN_PAIRS": "1000000"}
PROCESSES: dict[str, dict[str, Any]] = {
    "engine": {
        "about": "answers everything the same way",
        "module": "benchmarks.stub_engine",
        "arguments": ["--port", "${port.engine}"],
        "ports": {"engine": 8000},
        "ready": {"http": "${url.engine}/"},
    },
    "router": {"env": _ENGINE},
    "router-b": {
        "about": "the second replica of the router",
        "module": "services.router",
        "ports": {"router-b": 8090},
        "env": {**_ENGINE, "RATCHET_ROUTER_PORT": "${port.router-b}"},
        "after": ["topics", "redis"],
        "ready": {"http": "${url.router-b}/readyz"},
        "metrics": [{"port": "router-b", "job": "router"}],
    },
    "feedback-b": {
        "about": "the second replica of feedback, before the second router",
        "module": "services.feedback",
        "ports": {"feedback-b": 8091},
        "env": {
            "RATCHET_FEEDBACK_PORT": "${port.feedback-b}",
            "RATCHET_FEEDBACK_ROUTER_URL": "${url.router-b}",
            "RATCHET_FEEDBACK_VOTING_SECRET_FILE": "${data}/voting-secret",
        },
        "after": ["topics", "redis", "feedback"],
        "ready": {"http": "${url.feedback-b}/readyz"},
    },
    # Declared whole: in the first fixture's release the feedback service does this.
    "intake": {
        "about": "the consumer of what products publish",
        "module": "services.feedback.intake",
        "ports": {"intake": 8087},
        "after": ["topics", "redis"],
        "ready": {"http": "${url.intake}/readyz"},
    },
    "aggregator": {"env": _AGGREGATOR},
    "training": {"env": _TRAINING},
}


def keeping_environment(name: str) -> dict[str, str]:
    """What else a service is given after the upgrade, so that nothing of the fixture is too old."""
    return _KEEPING.get(name, {})


def upgrade_stack(
    run_dir: Path, agent: str, services: Sequence[str], *, keeps: bool = False
) -> Stack:
    """The stack with these services, not entered yet.

    Args:
        run_dir: its folder.
        agent: URL of an agent double.
        services: what it starts.
        keeps: services take the fixture's events however old they are.
    """
    rollout: Mapping[str, str] = {
        "RATCHET_ROLLOUT_AGENTS": agent,
        "RATCHET_ROLLOUT_AUTO_START": "false",
    }
    processes = {**PROCESSES, "rollout": {"env": rollout}}
    if keeps:
        for name in _KEEPING:
            process = processes.get(name, {})
            env = {**process.get("env", {}), **keeping_environment(name)}
            processes[name] = {**process, "env": env}
    return Stack(
        run_dir,
        services=services,
        processes=processes,
        ports="free",
        scrape_interval="1s",
        say=lambda _: None,
    )


@asynccontextmanager
async def serving_agent() -> AsyncIterator[str]:
    """URL of an agent double whose engine serves both versions."""
    adapters = [
        {"version": version, "state": "ready", "reason": "", "difference": 0.0}
        for version in (STABLE, CANDIDATE)
    ]
    engine = {"ready": True, "generation": 1, "base_model": "base"}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"engine": engine, "adapters": adapters})

    app = web.Application()
    app.router.add_get("/v1/adapters", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
