"""Forms of preference pairs that other tools read and write, one module each. Pure."""
