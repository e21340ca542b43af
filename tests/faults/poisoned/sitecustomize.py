"""Makes Pillow's decoding really die, hang or eat memory over files that say so: no library has a fault that lasts.

Python imports this at its start wherever this folder is on PYTHONPATH: in the worker, and in its children. Each blow is
written down first, so that a test can see that it fell.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGET = "tasks.inference.decoding.policies"


def strike(data: bytes) -> None:
    for name, blow in BLOWS.items():
        if name in data:
            with open(os.environ["POISON_RECORD"], "a", encoding="ascii") as out:
                out.write(f"{name.decode()} {os.getpid()}\n")
            blow()


def hang() -> None:
    while True:
        pass


def eat() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(2**26))


BLOWS: dict[bytes, Callable[[], Any]] = {
    b"poison: segmentation fault": lambda: ctypes.string_at(0),
    b"poison: hang": hang,
    b"poison: memory": eat,
}


class Poisoning(importlib.abc.MetaPathFinder):
    """Lets Python find the module, and puts the blow before its `decode`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            decode = module.decode

            def poisoned(data: bytes, *given: Any) -> Any:
                strike(data)
                return decode(data, *given)

            module.decode = poisoned

        loader.exec_module = exec_module
        return spec


if Path(os.environ.get("POISON_RECORD", "")).name:
    sys.meta_path.insert(0, Poisoning())
