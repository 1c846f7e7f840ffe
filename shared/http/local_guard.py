"""Host and Origin checks of the local profile, where nobody needs a key.

A page in a browser on this machine can send requests to loopback, from its own origin or, by DNS
rebinding, under a host name of its own. So only loopback names are answered, and only to pages of
loopback or of origins that a setting allows.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit

import orjson

from shared.http.asgi import AsgiApp, Receive, Scope, Send, respond
from shared.http.cors import ANY
from shared.settings import ServiceSettings, is_loopback

REFUSED = 403


def with_local_guard(
    app: AsgiApp, settings: ServiceSettings, origins: tuple[str, ...] = ()
) -> AsgiApp:
    """The application behind the checks; as it is where keys or RATCHET_LOCAL_OPEN let others in.

    `origins` are those whose pages CORS allows.
    """
    if settings.profile != "local" or settings.local_open:
        return app
    return LocalGuard(app, origins)


class LocalGuard:
    """ASGI middleware that answers 403 to other hosts' names and other origins' pages."""

    def __init__(self, app: AsgiApp, origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand an allowed request on."""
        if scope["type"] != "http" or not (why := self._refusal(scope)):
            await self._app(scope, receive, send)
            return
        body = {
            "type": "about:blank",
            "title": "Not allowed",
            "status": REFUSED,
            "code": "forbidden",
            "detail": f"{why}; the local profile answers this machine only: set RATCHET_PROFILE="
            "production and issue keys, or RATCHET_LOCAL_OPEN=true on a network that you trust",
        }
        await respond(send, REFUSED, orjson.dumps(body), b"application/problem+json")

    def _refusal(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"host":
                if not _is_here(b"//" + value):
                    return "the Host header names another machine"
            elif name == b"origin" and not self._allows(value):
                return "the Origin header names a page of another site"
        return ""

    def _allows(self, origin: bytes) -> bool:
        text = origin.decode("latin-1")
        return ANY in self._origins or text in self._origins or _is_here(origin)


@lru_cache(maxsize=64)
def _is_here(address: bytes) -> bool:
    """Whether an address of a header names this machine. Clients repeat theirs with each request."""
    try:
        return is_loopback(urlsplit(address.decode("latin-1")).hostname or "")
    except ValueError:
        return False
