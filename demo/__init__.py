"""The demo: a starter model, simulated users with hidden tastes, and the proof that the loop learns.

Nothing here is imported by `services/`; the demo itself speaks to public endpoints only.
"""
