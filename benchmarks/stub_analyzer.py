"""An analyzer of personal data that finds nothing, after a while, to measure who asks it.

    python -m benchmarks.stub_analyzer --port 3000 [--delay 0.02]

It answers Presidio's `POST /analyze` with an empty list for each text; GET answers 200.
"""

from __future__ import annotations

import argparse
import asyncio

import orjson
import uvloop
from aiohttp import web


def application(delay_s: float) -> web.Application:
    """The analyzer, which takes so many seconds for each request."""

    async def analyze(request: web.Request) -> web.Response:
        texts = orjson.loads(await request.read())["text"]
        await asyncio.sleep(delay_s)
        return web.Response(body=orjson.dumps([[] for _ in texts]), content_type="application/json")

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/analyze", analyze)
    app.router.add_get("/", healthy)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.stub_analyzer", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds")
    given = parser.parse_args()
    uvloop.install()
    web.run_app(
        application(given.delay), host="127.0.0.1", port=given.port, print=None, access_log=None
    )


if __name__ == "__main__":
    main()
