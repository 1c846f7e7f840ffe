"""Headers of answers for clients, and those of them that browsers may read."""

from __future__ import annotations

from services.router.call import Call
from services.router.fields import ignored_header

EXPOSED_HEADERS = (
    "x-ratchet-trace-id",
    "x-request-id",
    "x-ratchet-version",
    "x-ratchet-arm",
    "x-ratchet-overhead-ms",
    "x-ratchet-ignored",
)
"""Headers of answers that a page of an allowed origin may read."""


def answer_headers(call: Call, content_type: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of every answer that an engine was asked for."""
    last = call.last
    trace_id = call.request.trace_id.encode()
    headers = [
        (b"content-type", content_type),
        (b"x-ratchet-trace-id", trace_id),
        (b"x-request-id", trace_id),
        (b"x-ratchet-overhead-ms", b"%.3f" % (call.overhead_s * 1000)),
    ]
    if call.shows_arm:
        headers += [
            (b"x-ratchet-version", last.version.encode()),
            (b"x-ratchet-arm", last.arm.encode()),
        ]
    if call.request.ignored:
        headers.append((b"x-ratchet-ignored", ignored_header(call.request.ignored)))
    return headers
