"""Requests as Open WebUI and LibreChat send them."""

from __future__ import annotations

from typing import Any

OPEN_WEBUI_HEADERS = {
    "Authorization": "Bearer none",
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-User-Id": "7c0f1f5e-0000-4000-8000-000000000001",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "user",
}
"""The user, with `ENABLE_FORWARD_USER_INFO_HEADERS`."""
LIBRECHAT_USER = "65f000000000000000000001"


def open_webui_chat(model: str, parts: list[dict[str, Any]], tools: list[Any]) -> dict[str, Any]:
    """A chat: content parts, tools by its own names."""
    return {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts},
        ],
        "temperature": 0.7,
        "max_tokens": 64,
        "tools": tools,
    }


def open_webui_title(model: str, max_tokens: int) -> dict[str, Any]:
    """A title: asked for whole, without tools, and with reasoning left to the model."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "### Task:\nGenerate a title"}],
        "stream": False,
        "max_completion_tokens": max_tokens,
    }


def librechat_chat(model: str) -> dict[str, Any]:
    """A chat through LangChain's client: sampling fields always set, the user in the body."""
    return {
        "model": model,
        "temperature": 1,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": LIBRECHAT_USER,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "How warm is Paris?"}]},
        ],
    }


def librechat_responses(model: str) -> dict[str, Any]:
    """A chat on the Responses API."""
    return {
        "model": model,
        "input": [{"type": "message", "role": "user", "content": "How warm is Paris?"}],
        "user": LIBRECHAT_USER,
        "stream": True,
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "parallel_tool_calls": True,
    }
