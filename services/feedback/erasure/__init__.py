"""Erasure of people: the request, the sweep over the topics, its proof, and export of a person."""
