"""What the services share: contracts, the event log, the registry, redaction, observability."""
