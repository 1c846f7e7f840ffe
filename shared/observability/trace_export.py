"""Which export of spans the OTEL_* variables of the OpenTelemetry specification ask for."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shared.observability.spans import OFF, HeadSampling, Spans

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TRACES_PATH = "/v1/traces"
"""Below the second of them; the first is the whole address."""
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
SAMPLER, RATIO = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_BY_PARENT = "parentbased_"
_RATIOS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
"""Sampler -> share of traces; None: what RATIO says."""


def spans_of(service: str, environ: Mapping[str, str] = os.environ) -> Spans:
    """The spans of `ratchet-<service>`; without an endpoint none, and the SDK is not even loaded.

    Raises:
        SystemExit: a protocol or sampler that is not supported, or a ratio beyond [0, 1].

    """
    if not traces_url(environ):
        return OFF
    for name in PROTOCOLS:
        if environ.get(name, PROTOCOL) != PROTOCOL:
            raise SystemExit(
                f"{name}: {environ[name]!r} is not supported; use {PROTOCOL} and its port"
            )
    from shared.observability.otlp import OtlpExport

    name = environ.get("OTEL_SERVICE_NAME") or f"ratchet-{service}"
    return Spans(OtlpExport.of(name), _sampling(environ))


def traces_url(environ: Mapping[str, str]) -> str:
    """The address that spans are posted to; empty where none are exported."""
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return ""
    whole, base = (environ.get(name, "") for name in ENDPOINTS)
    return whole or (base and base.rstrip("/") + TRACES_PATH)


def _sampling(environ: Mapping[str, str]) -> HeadSampling:
    sampler = environ.get(SAMPLER) or "parentbased_always_on"
    kind = sampler.removeprefix(_BY_PARENT)
    if kind not in _RATIOS:
        known = ", ".join(f"[{_BY_PARENT}]{one}" for one in _RATIOS)
        raise SystemExit(f"{SAMPLER}: {sampler!r} is not supported; use one of {known}")
    ratio = _RATIOS[kind]
    if ratio is None:
        given = environ.get(RATIO) or "1"
        try:
            ratio = float(given)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise SystemExit(f"{RATIO}: {given!r} must be a share from 0 to 1, such as 0.1")
    return HeadSampling(ratio, parent_based=sampler.startswith(_BY_PARENT))
