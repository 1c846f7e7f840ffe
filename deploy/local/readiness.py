"""Is a process ready? One short question each; the waiting is the stack's."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import urllib.error
import urllib.request

from deploy.local.processes import Ready

_PROBE_S = 2.0
_MAX_ANSWER = 10_000
_API_VERSIONS = 18
_CORRELATION_ID = 0x5A7C4E7

# Loopback needs no proxy, whatever the environment says about proxies.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_ready(probe: Ready) -> bool:
    """Asks once, for at most two seconds; addresses must be filled in (`host:port`, URL)."""
    try:
        if probe.http:
            return _http(probe.http)
        if probe.redis:
            return _dialogue(probe.redis, b"PING\r\n", len(b"+PONG\r\n")) == b"+PONG\r\n"
        if probe.kafka:
            return _kafka(probe.kafka)
        return _dialogue(probe.tcp, b"", 0) == b""
    except (OSError, http.client.HTTPException):
        return False


def missing(probe: Ready) -> str:
    """What a process itself says that it waits for: the failing checks of its /readyz, or nothing."""
    try:
        if probe.http:
            _direct.open(probe.http, timeout=_PROBE_S).close()
    except urllib.error.HTTPError as error:
        with error:
            return _failing(error.read(_MAX_ANSWER))
    except (OSError, http.client.HTTPException):
        pass
    return ""


def _failing(answer: bytes) -> str:
    try:
        checks = dict(json.loads(answer)["checks"])
    except (ValueError, KeyError, TypeError):
        return ""
    return "; ".join(f"{name}: {said}" for name, said in checks.items() if said != "ok")


def _http(url: str) -> bool:
    try:
        with _direct.open(url, timeout=_PROBE_S) as response:
            return 200 <= response.status < 300
    except urllib.error.HTTPError as error:
        error.close()
        return False


def _kafka(address: str) -> bool:
    """An ApiVersions request: a broker binds its port early and answers only once it serves."""
    request = struct.pack(">hhih", _API_VERSIONS, 0, _CORRELATION_ID, -1)
    answer = _dialogue(address, struct.pack(">i", len(request)) + request, 10)
    if len(answer) < 10:
        return False
    _, correlation_id, error_code = struct.unpack(">iih", answer)
    return correlation_id == _CORRELATION_ID and error_code == 0


def _dialogue(address: str, question: bytes, answer_bytes: int) -> bytes:
    host, _, port = address.rpartition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=_PROBE_S) as connection:
        connection.sendall(question)
        while len(answer) < answer_bytes:
            part = connection.recv(answer_bytes - len(answer))
            if not part:
                break
            answer += part
    return answer
