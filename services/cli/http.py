"""HTTP client of the command."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from services.cli.errors import CliError, Exit, unreachable
from services.cli.settings import CliSettings, url_variable

TIMEOUT_S = 10.0
DOWNLOAD_TIMEOUT_S = 60.0
"""Longest wait for the next part of a streamed answer."""
PART = 1024 * 1024
MAX_ANSWER = 64 * 1024 * 1024
NOT_LEADING = "not_leading"
"""Code of a replica that did nothing, as another one leads; the one address may stand for both."""
LEADER_WITHIN_S = 10.0
"""How long to look for the one that leads: longer than an election takes."""
LEADER_PAUSE_S = 0.5


def ask(
    settings: CliSettings,
    service: str,
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: Any = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """The service's answer to one request.

    A replica that does not lead is asked again, on a new connection that may reach another: at
    most LEADER_WITHIN_S seconds long, and only then, as nothing was done there.

    Raises:
        CliError: no answer, or an answer that says no, in the service's own words.

    """
    url = _url(settings, service, path, query or {})
    deadline = time.monotonic() + LEADER_WITHIN_S
    while True:
        try:
            status, text = fetch(settings, url, method=method, body=body, timeout_s=timeout_s)
        except (OSError, ValueError) as error:
            variable = url_variable(service)
            raise unreachable(service, settings.url(service), error, variable) from None
        data = _parsed(text)
        if not _not_leading(status, data) or time.monotonic() + LEADER_PAUSE_S > deadline:
            break
        time.sleep(LEADER_PAUSE_S)
    if status >= 400:
        raise _refused(service, status, data, text)
    return data


def fetch(
    settings: CliSettings,
    url: str,
    *,
    method: str = "GET",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, str]:
    """Status and text of an answer, whatever its status.

    Raises:
        OSError: there was none, or none that was whole.

    """
    sent = {"accept": "application/json", **(headers or {})}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        sent["content-type"] = "application/json"
    try:
        with _open(
            settings, url, method=method, data=data, headers=sent, timeout_s=timeout_s
        ) as response:
            return response.status, whole(response).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(MAX_ANSWER).decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise OSError(f"the answer was cut: {type(error).__name__}") from error


def download(
    settings: CliSettings,
    service: str,
    path: str,
    file: BinaryIO,
    *,
    query: Mapping[str, Any],
) -> int:
    """Write a streamed answer of any size to a file, in bounded memory; returns its bytes.

    Raises:
        CliError: no answer, an answer that says no, or one that ended too early.

    """
    url = _url(settings, service, path, query)
    size = 0
    try:
        with _open(settings, url, timeout_s=DOWNLOAD_TIMEOUT_S) as response:
            while part := response.read(PART):
                file.write(part)
                size += len(part)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(MAX_ANSWER).decode("utf-8", "replace")
        raise _refused(service, error.code, _parsed(text), text) from None
    except (OSError, http.client.HTTPException) as error:
        variable = url_variable(service)
        if size:
            ended = f"{service} ended the answer after {size} bytes ({error}); it is not whole"
            raise CliError(ended, Exit.failed) from None
        raise unreachable(service, settings.url(service), error, variable) from None
    return size


def download_to(
    settings: CliSettings, service: str, path: str, to: Path, *, query: Mapping[str, Any]
) -> int:
    """Write a streamed answer to a file once it is whole; until then the old file stays.

    Raises:
        CliError: see `download`.

    """
    partial = to.with_name(f".partial-{to.name}")
    try:
        with partial.open("wb") as file:
            size = download(settings, service, path, file, query=query)
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)
    return size


def whole(answer: http.client.HTTPResponse) -> bytes:
    """An answer's body.

    Raises:
        OSError: it is over MAX_ANSWER bytes, or the connection ended first.

    """
    body = answer.read(MAX_ANSWER + 1)
    if len(body) > MAX_ANSWER:
        raise OSError(f"the answer is larger than {MAX_ANSWER} bytes")
    return body


def segment(text: str) -> str:
    """A name as one segment of a path."""
    return urllib.parse.quote(text, safe="")


def _url(settings: CliSettings, service: str, path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return settings.url(service) + path + ("?" + urllib.parse.urlencode(given) if given else "")


def _open(
    settings: CliSettings,
    url: str,
    *,
    method: str = "GET",
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> http.client.HTTPResponse:
    sent = dict(headers or {})
    if settings.api_key:
        sent["authorization"] = f"Bearer {settings.api_key}"
    # The settings allow http and https only.
    request = urllib.request.Request(url, data=data, method=method, headers=sent)  # noqa: S310
    return urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310


def _refused(service: str, status: int, data: Any, text: str) -> CliError:
    return CliError(f"{service} refused ({status}): {_reason(data, text)}", Exit.refused)


def _parsed(text: str) -> Any:
    """An answer's JSON; None where it is none."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _not_leading(status: int, data: Any) -> bool:
    return status == 503 and isinstance(data, dict) and data.get("code") == NOT_LEADING


def _reason(data: Any, text: str) -> str:
    """The service's own words: a problem's detail, or the router's OpenAI error message."""
    if isinstance(data, dict):
        error = data.get("error")
        said = error.get("message") if isinstance(error, dict) else data.get("detail")
        if said:
            return str(said)
    return text[:500] or "no reason given"


def listing(data: Any, name: str) -> list[dict[str, Any]]:
    """The objects of a listing, which is `{name: [...]}`.

    Raises:
        CliError: the service answered something else.

    """
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise CliError(
            f"the answer has no list {name!r}; service and command are of different versions",
            Exit.failed,
        )
    return found
