"""In-memory twins of the ports, for fast tests; one suite runs against twin and real."""
