"""The feedback service: what people say of answers, on the log before it is acknowledged."""
