"""Prometheus client of the command: instant queries, with the access that the rollout service has."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.cli.errors import CliError, Exit, unreachable
from services.cli.http import whole
from services.cli.settings import server_port

TIMEOUT_S = 10.0
URL = "RATCHET_PROMETHEUS_URL"
TOKEN_FILE = "RATCHET_PROMETHEUS_TOKEN_FILE"  # noqa: S105
USERNAME = "RATCHET_PROMETHEUS_USERNAME"
PASSWORD_FILE = "RATCHET_PROMETHEUS_PASSWORD_FILE"  # noqa: S105
HEADERS_FILE = "RATCHET_PROMETHEUS_HEADERS_FILE"
CA_FILE = "RATCHET_PROMETHEUS_CA_FILE"
OURS = "Ratchet"
"""How the names of our alerts begin."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an instant vector."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that fires: its name, what it says, and the address of its runbook."""

    name: str
    summary: str
    runbook: str


class PrometheusClient:
    """Prometheus's HTTP API as the environment describes it."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Raises CliError where the address is none."""
        given = os.environ if environ is None else environ
        self._given = given
        self.url = (
            given.get(URL) or f"http://127.0.0.1:{server_port('prometheus', given)}"
        ).rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise CliError(f"{URL} is {self.url!r}; allowed: http://host:port", Exit.usage)

    def query(self, promql: str, *, at: float | None = None) -> list[Sample]:
        """An instant vector, now or at `at` (seconds since 1970); NaN and infinite values are left out.

        Raises:
            CliError: Prometheus gave no answer, or refused the query.

        """
        parameters = {"query": promql, "time": f"{time.time() if at is None else at:.3f}"}
        data = self._get(f"/api/v1/query?{urllib.parse.urlencode(parameters)}")
        result = data.get("result", [])
        if data.get("resultType") == "scalar":
            return [Sample({}, float(result[1]))]
        samples = (Sample(one["metric"], float(one["value"][1])) for one in result)
        return [one for one in samples if abs(one.value) < float("inf")]

    def rules(self) -> set[str]:
        """Names of the recording and alerting rules that are loaded."""
        groups = self._get("/api/v1/rules").get("groups", [])
        return {str(rule["name"]) for group in groups for rule in group.get("rules", [])}

    def firing(self) -> list[Alert]:
        """Ratchet's alerts that fire now, as Prometheus has them.

        Raises:
            CliError: Prometheus gave no answer.

        """
        alerts = self._get("/api/v1/alerts").get("alerts", [])
        found: list[Alert] = []
        for one in alerts:
            name, notes = one["labels"]["alertname"], one.get("annotations", {})
            if one["state"] == "firing" and name.startswith(OURS):
                found.append(Alert(name, notes.get("summary", ""), notes.get("runbook_url", "")))
        return found

    def _get(self, path: str) -> dict[str, Any]:
        from shared.credentials import CredentialsUnreadable, tls_context

        try:
            request = urllib.request.Request(f"{self.url}{path}", headers=self._headers())  # noqa: S310
            context = None
            if self.url.startswith("https"):
                ca = self._given.get(CA_FILE)
                context = tls_context(Path(ca) if ca else None, CA_FILE)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310
                return dict(json.loads(whole(answer))["data"])
        except CredentialsUnreadable as error:
            raise CliError(str(error), Exit.usage) from None
        except urllib.error.HTTPError as error:
            reason = error.read(500).decode("utf-8", "replace")
            raise CliError(
                f"Prometheus at {self.url} refused ({error.code}): {reason}", Exit.refused
            ) from None
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            raise unreachable("Prometheus", self.url, error, URL) from error

    def _headers(self) -> dict[str, str]:
        from shared.credentials import read_secret

        found = {"accept": "application/json"}
        if path := self._given.get(HEADERS_FILE):
            lines = read_secret(Path(path), HEADERS_FILE).splitlines()
            pairs = (line.partition(":") for line in lines if line.strip())
            found |= {name.strip(): value.strip() for name, _, value in pairs}
        if path := self._given.get(TOKEN_FILE):
            found["authorization"] = f"Bearer {read_secret(Path(path), TOKEN_FILE)}"
        elif path := self._given.get(PASSWORD_FILE):
            pair = f"{self._given.get(USERNAME, '')}:{read_secret(Path(path), PASSWORD_FILE)}"
            found["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        return found
