"""The services, one room each; none imports another."""
