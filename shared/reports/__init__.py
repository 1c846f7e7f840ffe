"""Reports over a stretch of time, from what the log and the registry hold."""
