"""Names of span attributes: OpenTelemetry's conventions for generative AI and messaging, and ours.

The conventions for generative AI are in development; when a name there changes, it changes here.
No attribute holds a text, a user or a key.
"""

from __future__ import annotations

OPERATION = "gen_ai.operation.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"

MESSAGING_SYSTEM = "messaging.system"
MESSAGING_DESTINATION = "messaging.destination.name"
MESSAGING_OFFSET = "messaging.kafka.offset"
MESSAGING_PARTITION = "messaging.destination.partition.id"

TENANT = "ratchet.tenant"
TRACE_ID = "ratchet.trace_id"
VERSION = "ratchet.version"
ARM = "ratchet.arm"
REWARD_MODEL = "ratchet.reward_model"
ROLLOUT = "ratchet.rollout"
OVERHEAD_MS = "ratchet.overhead_ms"
OUTCOME = "ratchet.outcome"
KIND = "ratchet.kind"
JOB_ID = "ratchet.job_id"
DATASET = "ratchet.dataset"
DECISION = "ratchet.decision"
ROWS = "ratchet.rows"
ITEMS = "ratchet.items"

OPERATIONS = {
    "chat": "chat",
    "completions": "text_completion",
    "responses": "chat",
    "embeddings": "embeddings",
    "messages": "chat",
}
"""The router's endpoint -> value of OPERATION."""
