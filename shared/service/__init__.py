"""Service plumbing: background tasks, freshness checks and catch-up before work starts."""
