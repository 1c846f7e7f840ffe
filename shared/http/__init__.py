"""HTTP that every service shares: ASGI types, request bodies, problems, operations, the server."""
