"""What runs in the ML environment: one module a stage, `run` does them in order."""
