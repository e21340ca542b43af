"""Compile the resize into a home, as the first large shard on a machine does; the environment says which home."""

from __future__ import annotations

import json

from tasks.inference.decoding.resampling import KERNEL
from tasks.settings import load_settings


def main() -> None:
    """Compile it, or find it compiled."""
    compiled = load_settings().compiled
    KERNEL.compiled(compiled)
    print(json.dumps({"compiled": str(compiled)}))


if __name__ == "__main__":
    main()
