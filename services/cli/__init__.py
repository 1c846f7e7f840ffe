"""The `ratchet` command-line client of the services."""
