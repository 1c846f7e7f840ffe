"""Intake: a process of its own that consumes what products publish, bounded in memory."""
