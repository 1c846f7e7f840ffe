"""The event log: topics, envelopes, appending, reading, dead letters."""
