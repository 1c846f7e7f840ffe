"""Event models, one module a family of topics."""
