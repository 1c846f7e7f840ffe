"""Which reader reads the answers of an endpoint; chat and completions share one."""

from __future__ import annotations

from collections.abc import Callable

from services.router.fields import Endpoint
from services.router.passed_through import (
    MessagesReader,
    read_embeddings_answer,
    read_messages_answer,
)
from services.router.response import EngineResponse, StreamReader, read_response
from services.router.responses_api import ResponsesReader, read_responses_answer

WholeReader = Callable[[bytes, str, str], tuple[EngineResponse, bytes]]
"""Reads a body for a version and a trace id; returns the answer and the body for the client."""

WHOLE_READERS: dict[Endpoint, WholeReader] = {
    "chat": read_response,
    "completions": read_response,
    "responses": read_responses_answer,
    "embeddings": read_embeddings_answer,
    "messages": read_messages_answer,
}
STREAM_READERS: dict[Endpoint, type[StreamReader]] = {
    "chat": StreamReader,
    "completions": StreamReader,
    "responses": ResponsesReader,
    "messages": MessagesReader,
}
