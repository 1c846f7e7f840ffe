"""Which port each part of a stack listens on, so that several stacks run side by side.

Three ways, the first that applies: `RATCHET_<NAME>_PORT` for one port, `RATCHET_PORT_BASE` for a
whole stack (base + the port's place in the declaration), the declared default. `free_ports` picks
unused ones instead.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping

from deploy.local.errors import BadDeclaration, StackPortTaken

HOST = "127.0.0.1"

# Below Linux's range for outgoing connections (32768 and up), so that no client socket of another
# process can take a port between our choosing it and its server binding it.
FREE_RANGE = range(20_000, 32_000)
_TRIES = 200


def variable(name: str) -> str:
    """The environment variable that moves one port: `kafka-controller` → `RATCHET_KAFKA_CONTROLLER_PORT`."""
    return f"RATCHET_{name.upper().replace('-', '_')}_PORT"


def fixed_ports(defaults: Mapping[str, int], environ: Mapping[str, str]) -> dict[str, int]:
    """Ports from defaults and environment.

    Raises `BadDeclaration` for a value that is no port and for two names on one port.
    """
    base = environ.get("RATCHET_PORT_BASE", "")
    ports: dict[str, int] = {}
    for place, (name, default) in enumerate(defaults.items()):
        if own := environ.get(variable(name), ""):
            ports[name] = _number(variable(name), own)
        elif base:
            ports[name] = _number("RATCHET_PORT_BASE", base) + place
        else:
            ports[name] = default
    by_number: dict[int, str] = {}
    for name, number in ports.items():
        if number in by_number:
            raise BadDeclaration(
                f"port {number} is given to both {by_number[number]} and {name}; "
                f"set {variable(name)} to another"
            )
        by_number[number] = name
    return ports


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """A distinct unused port for each name. Raises `StackPortTaken` when none can be found."""
    system = random.SystemRandom()
    chosen: dict[str, int] = {}
    for name in names:
        for _ in range(_TRIES):
            number = system.choice(FREE_RANGE)
            if number not in chosen.values() and is_free(number):
                chosen[name] = number
                break
        else:
            raise StackPortTaken(
                f"no free port for {name} in {FREE_RANGE.start}–{FREE_RANGE.stop} "
                f"after {_TRIES} tries; stop other stacks"
            )
    return chosen


def is_free(number: int) -> bool:
    """Whether a server could bind this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
        except OSError:
            return False
    return True


def require_free(ports: Mapping[str, int]) -> None:
    """Raises `StackPortTaken`, naming every port that is held already."""
    taken = [f"{name} {number}" for name, number in ports.items() if not is_free(number)]
    if taken:
        raise StackPortTaken(
            f"held by another program: {', '.join(taken)}. Stop it, or move this stack: "
            "RATCHET_PORT_BASE=21000 make up (or RATCHET_<NAME>_PORT for one port)"
        )


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65_000:
        raise BadDeclaration(f"{name}={text!r} is no port; allowed are 1 to 65000")
    return int(text)
