"""`python -m deploy.local`: the local stack's commands."""

from __future__ import annotations

from deploy.local.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
