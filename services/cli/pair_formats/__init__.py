"""Forms of preference pairs and labelled answers that other tools read and write, one module each. Pure."""
