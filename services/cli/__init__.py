"""The `ratchet` command: asks the services, and says what they said."""
