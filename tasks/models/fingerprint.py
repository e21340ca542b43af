"""model_id: the identity of a model, computed from model.toml and file digests, without torch.

Two bundles have the same model_id exactly when they give the same predictions by construction: same weights,
architecture, preprocessing (decoder and resize included), labels, precision and top-k. The name, the version and the
folder are no part of it, so renaming a folder recomputes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEME = 1


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of `identity`, which holds the digests of the files, as 64 hex digits."""
    content = {"scheme": SCHEME, **identity}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
