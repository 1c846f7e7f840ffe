"""Probes of a version: red-team prompts, and prompts that differ in one person only."""
