"""Packages that only some users need. Each of them has a lock in extras/, and `make extra-NAME` installs it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tasks.errors import ConfigurationError

# Top-level module -> the extra that brings it.
EXTRAS = {
    "nncf": "nncf",
    "torch_pruning": "pruning",
    "timm": "timm",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "ray": "ray",
    "tensorrt": "tensorrt",
}


def require(module: str, what_for: str) -> Any:
    """Import a module of an extra. Raises ConfigurationError, which says what to install, where it is not there.

    `what_for` stands in front of "needs", such as "Quantisation to int8".
    """
    extra = EXTRAS[module.partition(".")[0]]
    if find_spec(module.partition(".")[0]) is None:
        raise ConfigurationError(
            f"{what_for} needs the package {module.partition('.')[0]}, which is not installed here. Run make extra-{extra}, "
            f"or install extras/{extra}.txt into this environment, and try again."
        )
    return import_module(module)
