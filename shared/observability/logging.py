"""Structured logs: one JSON object a line on stderr, events with ids and outcome."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal

import structlog

Level = Literal["debug", "info", "warning", "error"]
_USERINFO = re.compile(r"(?<=://)[^/?#\s\"@]+@")
"""User and password of a URL, as settings of engines and servers may have them."""


def configure_logging(service: str, level: Level = "info") -> None:
    """Send structlog's and the libraries' logs to stderr as JSON lines of this service."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        # Without locals: they hold what users wrote.
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ),
    ]
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(), _without_credentials],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _name_of_service(service)],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
                _without_credentials,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(numeric, logging.WARNING))


def _name_of_service(service: str) -> structlog.types.Processor:
    def add(
        _logger: object, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        event.setdefault("service", service)
        return event

    return add


def _without_credentials(_logger: object, _method: str, line: Any) -> str:
    """A rendered line without the credentials of the URLs in it, wherever in the event they stand."""
    return _USERINFO.sub("***@", line)
