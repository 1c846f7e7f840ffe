"""CORS: browsers of named origins may call a service and read the trace id of its answers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shared.http.asgi import AsgiApp

ANY = "*"
_ORIGIN = re.compile(r"https?://[^/\s,*]+")


def check_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """The origins as given.

    Raises:
        ValueError: one is neither `*` nor a scheme, a host and perhaps a port.

    """
    checked = tuple(origins)
    for origin in checked:
        if origin != ANY and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin; allowed: '*', or https://host[:port]")
    return checked


def with_cors(
    app: AsgiApp, origins: tuple[str, ...], *, methods: tuple[str, ...], expose: tuple[str, ...]
) -> AsgiApp:
    """The application, open to browsers of these origins; without any it is returned as it is.

    `expose` are the response headers that a page may read. Cookies are never allowed: a page sends
    its API key as a header.
    """
    if not origins:
        return app
    # Most services answer no browser and need none of this in memory.
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=methods,
        allow_headers=(ANY,),
        expose_headers=expose,
    )
