"""Ranking of versions by votes, and an audit of what the ranking rests on."""
