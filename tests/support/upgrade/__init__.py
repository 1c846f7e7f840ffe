"""Upgrade from the previous release: how its fixture is made, and how the present services go on."""
