"""Joins feedback to interactions, keeps the live figures, builds preference pairs."""
