"""Shared libraries: contracts, event log, registry, HTTP, plumbing, redaction, observability."""
