"""What every service process needs around its work: background tasks, freshness, catch-up."""
