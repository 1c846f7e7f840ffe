"""Data plane: an OpenAI-compatible gateway that picks the arm, proxies and records."""
