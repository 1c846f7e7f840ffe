"""`python -m deploy.starter`: trains or finds the starter model, and prints its paths as JSON."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from deploy.starter.model import CACHE, StarterConfig, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.starter", description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--steps", type=int, default=StarterConfig.steps)
    arguments = parser.parse_args()
    config = StarterConfig(steps=arguments.steps)
    print(prepare(config, arguments.cache, os.environ.get("MODEL") or None).as_json())


if __name__ == "__main__":
    main()
