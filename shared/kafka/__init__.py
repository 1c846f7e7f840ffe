"""The event log: topics, envelopes, appending, reading, spooling, dead letters."""
