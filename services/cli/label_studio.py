"""Client of a Label Studio project: tasks in, annotations out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from services.cli.errors import CliError, Exit, reason_of
from services.cli.http import fetch
from services.cli.settings import CliSettings

TOKEN = "LABEL_STUDIO_API_KEY"  # noqa: S105 - the variable's name, as Label Studio's SDK has it
TIMEOUT_S = 60.0


class LabelStudioProject:
    """One project of a server, by its HTTP API."""

    def __init__(self, url: str, project: int, settings: CliSettings) -> None:
        """Take the server's address, the project's number and the command's settings.

        Raises:
            CliError: the address is none, there is no token, or it is refused.

        """
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise CliError(f"--url {url}: must begin with http:// or https://", Exit.usage)
        self._url = url.rstrip("/")
        self._project = project
        # Ratchet's own key is not for this server.
        self._settings = replace(settings, api_key="")
        token = os.environ.get(TOKEN, "")
        if not token:
            raise CliError(
                f"{TOKEN} is not set; give it a token of Label Studio's account page", Exit.usage
            )
        self._authorization = self._authorized(token)

    def tasks(self) -> list[dict[str, Any]]:
        """All tasks with their annotations.

        Raises:
            CliError: the server does not answer, or refuses.

        """
        path = f"/api/projects/{self._project}/export?exportType=JSON&download_all_tasks=true"
        found = self._ask("GET", path)
        if not isinstance(found, list):
            raise CliError("Label Studio's export is no list of tasks", Exit.failed)
        return found

    def add(self, tasks: list[dict[str, Any]]) -> None:
        """Import tasks.

        Raises:
            CliError: the server does not answer, or refuses.

        """
        answer = self._ask("POST", f"/api/projects/{self._project}/import", tasks)
        taken = answer.get("task_count") if isinstance(answer, dict) else None
        if taken != len(tasks):
            raise CliError(f"Label Studio took {taken} of {len(tasks)} tasks", Exit.failed)

    def _authorized(self, token: str) -> str:
        if token.count(".") != 2:
            return f"Token {token}"
        # A personal access token is exchanged for one that lives for minutes.
        answer = self._ask("POST", "/api/token/refresh", {"refresh": token}, authorization="")
        if not isinstance(answer, dict) or "access" not in answer:
            raise CliError(f"Label Studio gave no access for the token of {TOKEN}", Exit.refused)
        return f"Bearer {answer['access']}"

    def _ask(
        self, method: str, path: str, body: Any = None, *, authorization: str | None = None
    ) -> Any:
        token = self._authorization if authorization is None else authorization
        headers = {"authorization": token} if token else {}
        try:
            status, text = fetch(
                self._settings,
                self._url + path,
                method=method,
                body=body,
                headers=headers,
                timeout_s=TIMEOUT_S,
            )
        except (OSError, ValueError) as error:
            told = (
                f"Label Studio at {self._url}: {reason_of(error)}; is it running, and --url right?"
            )
            raise CliError(told, Exit.unreachable) from None
        if status == 401:
            told = f"Label Studio refused the token of {TOKEN}; make a new one on its account page"
            raise CliError(told, Exit.refused)
        if status >= 400:
            told = (
                f"Label Studio refused {method} {path.partition('?')[0]} ({status}): {text[:500]}"
            )
            raise CliError(told, Exit.refused)
        try:
            return json.loads(text)
        except ValueError:
            raise CliError(
                "Label Studio's answer is no JSON; is --url right?", Exit.failed
            ) from None
