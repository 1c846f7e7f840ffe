"""Prometheus client: raw samples of a rollout, and whether its zeros were scraped."""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import orjson

from services.rollout.counters import CounterSeries, quoted
from services.rollout.errors import EvidenceUnavailable
from services.rollout.evidence import MAX_SERIES
from shared.credentials import CredentialsUnreadable, read_secret, tls_context
from shared.http.answers import read_answer
from shared.http.client import request_within

TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""MAX_SERIES series of two minutes take about 40 MiB."""
MAX_SHOWN = 200
"""Characters of an answer that an error shows; decisions carry errors."""
ROUTER_UP = "ratchet_router_spool_bytes"
"""Every router exports it from its start to its end, with a rollout or without."""
ROLLOUT_SEEN = "ratchet_router_rollout_seen"
"""1 from when all series of a rollout exist at a router; absent before and after."""


@dataclass(frozen=True, slots=True)
class PrometheusAccess:
    """How Prometheus is asked. Files are read for each question, so that a new token is used."""

    method: Literal["POST", "GET"] = "POST"
    token_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    headers_file: Path | None = None
    ca_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Credentials, and the lines `Name: value` of the headers' file.

        Raises:
            CredentialsUnreadable: a file cannot be read.

        """
        found: dict[str, str] = {}
        if self.headers_file:
            lines = read_secret(self.headers_file, "RATCHET_PROMETHEUS_HEADERS_FILE").splitlines()
            pairs = (line.partition(":") for line in lines if line.strip())
            found = {name.strip(): value.strip() for name, _, value in pairs}
        if self.token_file:
            token = read_secret(self.token_file, "RATCHET_PROMETHEUS_TOKEN_FILE")
            found["Authorization"] = f"Bearer {token}"
        elif self.password_file:
            password = read_secret(self.password_file, "RATCHET_PROMETHEUS_PASSWORD_FILE")
            pair = b64encode(f"{self.username}:{password}".encode()).decode()
            found["Authorization"] = f"Basic {pair}"
        return found


class Prometheus:
    """Prometheus's HTTP API, as far as evidence needs it.

    `router_matchers` (PromQL label matchers, comma-separated) say which routers are this
    installation's, where Prometheus watches others too; empty: all of them.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        router_matchers: str = "",
        access: PrometheusAccess = PrometheusAccess(),
    ) -> None:
        """Raises CredentialsUnreadable where the authorities' file cannot be read."""
        self._access = access
        self._tls = tls_context(access.ca_file, "RATCHET_PROMETHEUS_CA_FILE")
        self._session = session
        self._url = url.rstrip("/") + "/api/v1/query"
        self._router_matchers = router_matchers

    async def samples(self, query: str) -> list[CounterSeries]:
        """The series of a range-vector selector, each sample as it was scraped.

        A sample that no counter can have is left out: it spoils its series at its time, no more.

        Raises:
            EvidenceUnavailable: no, a wrong or an incomplete answer.

        """
        found = await self._ask(query, "matrix")
        return [_series(one) for one in found]

    async def zeros_missing(self, rollout_id: str) -> str:
        """What keeps the first weight above 0 back; empty once nothing does.

        Every router that is up must have been scraped with this rollout's series at 0: a count
        that begins later could not be told from one that was missed. Up is what has a current
        sample of a series that every router always exports: a failed scrape ends it at once, and
        no label has to have a certain value but those that the settings name.

        Raises:
            EvidenceUnavailable: no, a wrong or an incomplete answer.

        """
        up = await self._instances(ROUTER_UP)
        if not up:
            narrowed = f" with {self._router_matchers}" if self._router_matchers else ""
            return f"no router is up in Prometheus (no current {ROUTER_UP}{narrowed})"
        seen = await self._instances(ROLLOUT_SEEN, f'rollout="{quoted(rollout_id)}"')
        missing = sorted(up - seen)
        if missing:
            shown = ", ".join(name[:MAX_SHOWN] for name in missing[:5])
            return f"routers whose zeros were not scraped yet: {shown}"
        return ""

    async def _instances(self, metric: str, matcher: str = "") -> set[str]:
        """The instances of this installation's routers with a current sample of a metric."""
        matchers = ",".join(one for one in (self._router_matchers, matcher) if one)
        found = await self._ask(f"{metric}{{{matchers}}}", "vector")
        return {_labels(one).get("instance", "") for one in found}

    async def _ask(self, query: str, kind: str) -> list[dict[str, Any]]:
        posts = self._access.method == "POST"
        try:
            async with request_within(
                TIMEOUT_S,
                self._session,
                self._access.method,
                self._url,
                data={"query": query} if posts else None,
                params=None if posts else {"query": query},
                headers=self._access.headers(),
                ssl=self._tls,
                allow_redirects=False,
            ) as response:
                content = await read_answer(response, limit=MAX_ANSWER_BYTES)
        except CredentialsUnreadable as error:
            raise EvidenceUnavailable(f"Prometheus: {error}") from error
        except TimeoutError as error:
            raise EvidenceUnavailable(f"Prometheus: no answer within {TIMEOUT_S:g} s") from error
        except aiohttp.ClientError as error:
            raise EvidenceUnavailable(f"Prometheus: {error}") from error
        try:
            body: Any = orjson.loads(content)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict) or body.get("status") != "success":
            said = body.get("error") if isinstance(body, dict) else None
            said = str(said or content[:MAX_SHOWN].decode("utf-8", "replace"))[:MAX_SHOWN]
            raise EvidenceUnavailable(f"Prometheus: HTTP status {response.status}: {said}")
        data = body.get("data")
        if not isinstance(data, dict) or data.get("resultType") != kind:
            raise EvidenceUnavailable(f"Prometheus: the answer is not a {kind}")
        result = data.get("result")
        if not isinstance(result, list) or len(result) > MAX_SERIES:
            raise EvidenceUnavailable(
                f"Prometheus: the result must be a list of at most {MAX_SERIES} series"
            )
        return result


def _labels(one: dict[str, Any]) -> dict[str, str]:
    labels = one.get("metric")
    if not isinstance(labels, dict):
        raise EvidenceUnavailable("Prometheus: a series has no labels")
    return {str(name): str(value) for name, value in labels.items()}


def _series(one: dict[str, Any]) -> CounterSeries:
    values = one.get("values")
    if not isinstance(values, list):
        raise EvidenceUnavailable("Prometheus: a series has no samples")
    try:
        samples = [(float(at), float(value)) for at, value in values]
    except (TypeError, ValueError):
        raise EvidenceUnavailable("Prometheus: a sample is not a pair of numbers") from None
    good = tuple((at, value) for at, value in samples if math.isfinite(value) and value >= 0)
    spoiled = samples[-1][0] if samples and samples[-1] not in good[-1:] else None
    return CounterSeries(_labels(one), good, spoiled)
