"""Figures of ours beside a peer and a limit, each module one table: `make bench`."""
