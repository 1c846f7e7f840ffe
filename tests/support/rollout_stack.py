"""A stack of rollout service and router, before an engine and an agent of the test's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.local.stack import Stack
from tests.support.rollout_harness import HOST


@contextlib.contextmanager
def rollout_and_router(
    run_dir: Path,
    strategy: Mapping[str, Any],
    ports: Mapping[str, int],
    *,
    rollout_env: Mapping[str, str] | None = None,
    router_env: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """The started stack; `ports` are those of the test's `agent` and `engine`."""
    file = run_dir / f"{strategy['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(strategy)))
    rollout = {
        "RATCHET_ROLLOUT_AGENTS": f"http://{HOST}:{ports['agent']}",
        "RATCHET_ROLLOUT_STRATEGY": str(file),
        "RATCHET_ROLLOUT_AUTO_START": "false",
        "RATCHET_DATA_DIR": str(run_dir / "rollout-data"),
        **(rollout_env or {}),
    }
    router = {
        "RATCHET_ROUTER_ENGINES": f"http://{HOST}:{ports['engine']}",
        "RATCHET_DATA_DIR": str(run_dir / "router-data"),
        **(router_env or {}),
    }
    with Stack(
        run_dir,
        services=["rollout", "router"],
        processes={"rollout": {"env": rollout}, "router": {"env": router}},
        ports="free",
        scrape_interval="1s",
        say=lambda _: None,
    ) as started:
        yield started
