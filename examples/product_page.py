"""A product's page with thumbs, a correction, and Ratchet's comparison in a frame. See README.md."""

import json
import os
from pathlib import Path

from aiohttp import ClientSession, web

RATCHET = os.environ.get("RATCHET_FEEDBACK_URL", "http://127.0.0.1:8081")
KEY = {"authorization": f"Bearer {os.environ.get('RATCHET_API_KEY', 'none')}"}
HTML = Path(__file__).with_suffix(".html").read_text()
USER, ANSWER = "u-17", "the answer's x-ratchet-trace-id"


async def page(request: web.Request) -> web.Response:
    async with ClientSession(RATCHET, headers=KEY) as ratchet:
        invite = await ratchet.post("/v1/invites", json={"user_id": USER, "hours": 1})
        token = (await invite.json())["path"].partition("?")[2]
    frame = f"{RATCHET}/vote/embed?origin={request.url.origin()}&{token}"
    html = HTML.replace("FRAME", frame).replace("RATCHET", RATCHET)
    return web.Response(text=html, content_type="text/html")


async def feedback(request: web.Request) -> web.Response:
    body = {**json.loads(await request.text()), "trace_id": ANSWER, "user_id": USER}
    async with ClientSession(RATCHET, headers=KEY) as ratchet:
        stored = await ratchet.post("/v1/feedback", json=body)
        return web.Response(status=stored.status, text=await stored.text())


def application() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/", page), web.post("/feedback", feedback)])
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=8090)
