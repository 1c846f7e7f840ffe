"""The base model of a local stack: what the caller named, else the small starter model."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable

from deploy.local.errors import StackError
from deploy.local.processes import INTERPRETERS, ROOT
from deploy.starter.model import Starter
from shared.cpu_environment import CPU_ENVIRONMENT

BASE_MODEL = "RATCHET_INFERENCE_BASE_MODEL"
"""The variable that names a path or hub id in place of the starter model."""

STARTER_ENGINE = {
    "RATCHET_INFERENCE_ENGINE_THREADS": "1",
    "RATCHET_INFERENCE_TOOL_PARSER": "hermes",
}
"""What suits the engine that serves the starter: so small, a second thread only waits; and the form
in which its chat template writes tool calls."""

OWN_ENGINE = {"RATCHET_INFERENCE_MAX_CONTEXT": "2048"}
"""What suits a model of one's own, as in compose; the service's default is as far as the starter reads."""

_TRAINING_S = 900.0


def prepare_starter(say: Callable[[str], None]) -> Starter:
    """The starter model and its demonstrations, made now (about 75 s) unless they are in the cache.

    Raises `StackError` when the training fails or takes longer than a quarter of an hour.
    """
    command = [str(INTERPRETERS["ml"]), "-m", "deploy.starter"]
    late = threading.Event()
    try:
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **CPU_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:

            def give_up() -> None:
                late.set()
                process.kill()

            # Reading waits without limit, and so does what leaves this block: the end of the
            # trainer ends both.
            timer = threading.Timer(_TRAINING_S, give_up)
            timer.start()
            try:
                last = ""
                for line in process.stdout or ():
                    if last:
                        say(last)
                    last = line.strip()
                status = process.wait()
            finally:
                timer.cancel()
                process.kill()
    except FileNotFoundError:
        raise StackError(f"{command[0]} is missing: run make setup") from None
    if status != 0 and late.is_set():
        raise StackError(
            f"the starter model could not be made: {' '.join(command)} took over {_TRAINING_S:g} s"
        )
    if status != 0:
        raise StackError(f"the starter model could not be made: {' '.join(command)} ended {status}")
    return Starter.from_json(last)
