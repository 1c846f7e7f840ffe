"""Asking a served version probes, and the reports of such runs."""
