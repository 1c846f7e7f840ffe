"""Forms of old logs with feedback, one module each. Pure."""
