"""Observability of every service: structured logs, health checks and trace ids."""
