"""OpenVINO without its reports: it tells its makers of every import and conversion, except where it runs in CI.

What users do with their images and models is their own business, and a worker without the internet would wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unreported() -> Iterator[None]:
    """Look like CI, which is the one switch that OpenVINO asks without writing into the user's home."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


with unreported():
    import openvino as ov

__all__ = ["ov", "unreported"]
