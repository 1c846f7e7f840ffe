"""What a process that is not ready says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from deploy.local.processes import Ready
from deploy.local.readiness import is_ready, missing


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that says this to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/readyz"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b'{"ok": true, "checks": {"kafka": "ok"}}', ""),
        (
            503,
            b'{"ok": false, "checks": {"kafka": "ok", "adapters": "not ready: v1.1"}}',
            "adapters: not ready: v1.1",
        ),
        (503, b"overloaded", ""),
        (503, b'{"checks": 3}', ""),
    ],
)
def test_a_process_says_which_checks_fail(status: int, body: bytes, says: str) -> None:
    with answering(status, body) as url:
        assert is_ready(Ready(http=url)) is (status == 200)
        assert missing(Ready(http=url)) == says


def test_one_that_is_away_or_has_no_page_says_nothing() -> None:
    assert missing(Ready(tcp="127.0.0.1:1")) == ""
    with answering(200, b"") as url:
        pass
    assert missing(Ready(http=url)) == ""
