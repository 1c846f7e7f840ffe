"""HTTP plumbing of every service: ASGI types, request bodies, problems, operations, server."""
