"""Dashboards of single services: router, inference, the stream through Kafka, training."""

from __future__ import annotations

from deploy.k8s.monitoring.panels import REQUESTS, WAITS, by_partition, panel, per_second, quantile

ROUTER = (
    panel(
        "Requests by outcome",
        "Attempts a second.",
        "reqps",
        (per_second(REQUESTS, "outcome"), "{{outcome}}"),
    ),
    panel(
        "Request duration, 50th and 99th percentile",
        "What a client waits; streams: to the first token. Without limits of its own a model has 2 s for 99 %.",
        "s",
        (quantile(0.5, WAITS, "version"), "50 % {{version}}"),
        (quantile(0.99, WAITS, "version"), "99 % {{version}}"),
        target=2,
    ),
    panel(
        "Objectives, last hour",
        "Share of requests that failed or came late; the objective of both is 1 %.",
        "percentunit",
        ("ratchet:slo:bad_ratio_rate1h", "{{model}} {{sli}}"),
        target=0.01,
    ),
    panel(
        "Added by the router, 99th percentile",
        "Time in the router itself.",
        "s",
        (quantile(0.99, "ratchet_router_overhead_seconds"), "overhead"),
    ),
    panel(
        "Time to first token, 95th percentile",
        "Streams only.",
        "s",
        (quantile(0.95, "ratchet_router_time_to_first_token_seconds", "version"), "{{version}}"),
    ),
    panel(
        "Largest gap between tokens, 95th percentile",
        "Streams only.",
        "s",
        (quantile(0.95, "ratchet_router_token_gap_seconds", "version"), "{{version}}"),
    ),
    panel(
        "Spool",
        "Interaction events that the brokers have not acknowledged.",
        "bytes",
        ("ratchet_router_spool_bytes", "{{instance}}"),
    ),
    panel(
        "Events lost",
        "Interaction events that neither spool nor memory took.",
        "short",
        ("ratchet_router_events_lost_total", "{{instance}}"),
    ),
    panel(
        "Events recovered",
        "Of a process that was killed: from its spool or, without texts, its journal.",
        "short",
        ("ratchet_router_events_recovered_total", "{{instance}} {{folder}}"),
    ),
    panel(
        "Age of the routing state",
        "While a rollout has users; after a minute they go to stable.",
        "s",
        ("ratchet_router_state_age_seconds", "{{instance}}"),
        target=60,
    ),
    panel(
        "Behaviour of answers",
        "Complete answers a second by what they did; an answer may be of several kinds.",
        "ops",
        (
            per_second("ratchet_router_answers_total", "version", "behaviour"),
            "{{version}} {{behaviour}}",
        ),
    ),
)

INFERENCE = (
    panel(
        "Engines",
        "1 while the engine answers its health check.",
        "short",
        ("ratchet_inference_engine_up", "{{instance}}"),
    ),
    panel(
        "Ends of engines",
        "By what ended them, since the agent's start.",
        "short",
        (
            "sum by (instance, cause) (ratchet_inference_engine_ends_total)",
            "{{instance}} {{cause}}",
        ),
    ),
    panel(
        "Requests in the engine",
        "vLLM's own: running and waiting.",
        "short",
        ("sum by (instance) (vllm:num_requests_running)", "running {{instance}}"),
        ("sum by (instance) (vllm:num_requests_waiting)", "waiting {{instance}}"),
    ),
    panel(
        "Tokens a second",
        "vLLM's own: read and written.",
        "short",
        (per_second("vllm:prompt_tokens_total"), "read"),
        (per_second("vllm:generation_tokens_total"), "written"),
    ),
    panel(
        "Adapters by state",
        "On each replica.",
        "short",
        ("sum by (instance, state) (ratchet_inference_adapters)", "{{instance}} {{state}}"),
    ),
    panel(
        "Adapters refused",
        "By reason, since the agent's start.",
        "short",
        ("sum by (reason) (ratchet_inference_adapter_refusals_total)", "{{reason}}"),
    ),
    panel(
        "Loading an adapter, mean",
        "Fetching, checking and loading.",
        "s",
        (
            "sum(ratchet_inference_adapter_load_seconds_sum)"
            " / (sum(ratchet_inference_adapter_load_seconds_count) > 0)",
            "load",
        ),
    ),
    panel(
        "Batch worker",
        "Generations under way, and how many the live traffic leaves room for.",
        "short",
        ("ratchet_inference_batch_in_flight", "under way {{instance}}"),
        ("ratchet_inference_batch_allowed", "allowed {{instance}}"),
    ),
    panel(
        "Scores of moderated generation, median",
        "By the reward model: the writer's answer, and what the critic made of it.",
        "short",
        (quantile(0.5, "ratchet_inference_moderated_score", "role"), "{{role}}"),
    ),
    panel(
        "Whose answer moderated generation returned",
        "A second; fallback: nothing scored it.",
        "ops",
        (per_second("ratchet_inference_moderated_total", "chosen"), "{{chosen}}"),
    ),
)

KAFKA = (
    panel(
        "Events read by the aggregator",
        "A second, by topic.",
        "ops",
        (per_second("ratchet_aggregator_events_total", "topic"), "{{topic}}"),
    ),
    panel(
        "Consumer lag by group",
        "Records not handled yet, of the members that run; `ratchet doctor` asks the brokers.",
        "short",
        ("sum by (group, topic) (ratchet_consumer_lag_records)", "{{group}} {{topic}}"),
    ),
    panel(
        "Age of events when counted, 95th percentile",
        "From the event's time to its count; feedback may be given late.",
        "s",
        (quantile(0.95, "ratchet_event_age_seconds", "topic"), "{{topic}}"),
    ),
    panel(
        "Partitions owned",
        "By worker; 0 while it recovers.",
        "short",
        ("ratchet_aggregator_partitions", "{{instance}}"),
    ),
    panel(
        "Rows held by the aggregator",
        "By worker, on disk.",
        "bytes",
        ("ratchet_aggregator_state_bytes", "rows {{instance}}"),
        ("sum(max by (partition) (ratchet_aggregator_row_bytes))", "traces, uncompressed"),
    ),
    panel(
        "Feedback waiting for its interaction",
        "Grows while a router cannot ship its events.",
        "short",
        ("sum(max by (partition) (ratchet_feedback_pending))", "pending"),
    ),
    panel(
        "What became of feedback",
        "A second, by outcome.",
        "ops",
        (by_partition("ratchet_feedback_outcomes_total", "outcome"), "{{outcome}}"),
    ),
    panel(
        "Writing a batch, 95th percentile",
        "Outputs, rows and checkpoints until the brokers confirmed them.",
        "s",
        (quantile(0.95, "ratchet_aggregator_batch_write_seconds"), "batch"),
    ),
    panel(
        "Feedback accepted",
        "Acknowledged by the brokers, a second, by way in.",
        "ops",
        (per_second("ratchet_ingestion_accepted_total", "way"), "{{way}}"),
    ),
    panel(
        "Feedback refused",
        "A second, by reason.",
        "ops",
        (per_second("ratchet_ingestion_rejected_total", "reason"), "{{reason}}"),
    ),
    panel(
        "Publishing feedback, 99th percentile",
        "From a checked event to the brokers' acknowledgement.",
        "s",
        (quantile(0.99, "ratchet_ingestion_publish_duration_seconds", "outcome"), "{{outcome}}"),
    ),
    panel(
        "Room left on disks",
        "Share of a directory's volume, of the replica that has least; the alert is below 15 %.",
        "percentunit",
        (
            "min by (job, directory) (ratchet_disk_free_bytes / (ratchet_disk_size_bytes > 0))",
            "{{job}} {{directory}}",
        ),
        target=0.15,
    ),
)
