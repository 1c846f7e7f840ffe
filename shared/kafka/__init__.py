"""Kafka event log: topics, CloudEvents envelopes, producer, consumers, dead letters."""
