"""Logs, health, metrics and trace ids, the same way in every service."""
