"""What runs on a CUDA image with nothing but torch, torchvision, Pillow and NumPy: the models' side of the program."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest

from tests.conftest import ROOT, outer_environment

THERE = ("torch", "torchvision", "pillow", "numpy")

# Rooms whose every module must import on the bare image, and the modules in them that are for another device,
# or that only a process with their package imports.
ROOMS = {
    "tasks.models": (
        "tasks.models.manifest",
        "tasks.models.runtimes.openvino_runtime",
        "tasks.models.runtimes.unreported",
    ),
    "tasks.inference": ("tasks.inference.decoding.kernel",),
}


def needed(name: str, seen: set[str]) -> set[str]:
    """A distribution and what it depends on, extras left out."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return seen
    try:
        requirements = distribution(name).requires or []
    except PackageNotFoundError:
        return seen
    seen.add(key)
    for requirement in requirements:
        if "extra ==" not in requirement:
            found = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert found is not None
            needed(found[0], seen)
    return seen


def blocked() -> set[str]:
    """Top-level modules of every distribution that the bare image lacks."""
    there: set[str] = set()
    for name in THERE:
        needed(name, there)
    return modules_beyond(there)


def modules_beyond(there: set[str]) -> set[str]:
    """Top-level modules of every distribution that is installed here and not named in `there`."""
    return {
        module
        for module, owners in packages_distributions().items()
        if not any(re.sub(r"[-_.]+", "-", owner).lower() in there for owner in owners)
        and module not in sys.stdlib_module_names
        and module not in ("tasks", "tests", "_distutils_hack", "_virtualenv")
    }


def modules_of(room: str, without: tuple[str, ...]) -> Iterator[str]:
    """Every module of a room that is meant to run there."""
    for path in sorted((ROOT / room.replace(".", "/")).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name not in without:
            yield name


def on_the_bare_image(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints that finds the four distributions and what they need, and nothing else."""
    command = [sys.executable, "-c", code, ",".join(sorted(blocked())), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=outer_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCK = """
import importlib, sys
from importlib.machinery import PathFinder

class Without:
    names = set(sys.argv[1].split(","))

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.names else PathFinder.find_spec(name, path, target)

kept = ("BuiltinImporter", "FrozenImporter")
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") in kept] + [Without()]
"""

IMPORT = BLOCK + "print([importlib.import_module(name).__name__ for name in sys.argv[2:]])"


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_imports_on_the_bare_image(room: str) -> None:
    names = list(modules_of(room, ROOMS[room]))

    assert len(names) > 5
    assert on_the_bare_image(IMPORT, *names).strip() == str(names)


def test_the_bare_image_lacks_what_the_rest_of_the_program_needs() -> None:
    assert {"pydantic", "sqlalchemy", "safetensors", "boto3", "openvino", "simplejpeg", "numba"} <= blocked()
    assert not {"torch", "torchvision", "PIL", "numpy", "sympy"} & blocked()


PREDICT = (
    BLOCK
    + """
import io
import numpy as np
from PIL import Image
from tasks.inference.decoding.policies import open_decoder
from tasks.models.architectures import build
from tasks.models.loading import wrap
from tasks.models.runtimes.torch_runtime import TorchRuntime
from tasks.models.spec import ModelSpec, Preprocessing

half = (0.5, 0.5, 0.5)
spec = ModelSpec("in memory", "small_cnn", Preprocessing(16, 16, half, half), options={"width": 4})
runtime = TorchRuntime(wrap(build(spec.architecture, 3, spec.options), spec), 16, is_compiled=False)
data = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(data, "JPEG")
pixels = runtime.buffer()[:2]
from pathlib import Path
errors = open_decoder(spec.preprocessing, Path("unused"), 100_000, "cpu").decode_group([data.getvalue(), b"x"], pixels)
print([error and error.reason for error in errors], runtime.predict(pixels).shape)
"""
)


def test_a_model_made_in_memory_predicts_on_the_bare_image() -> None:
    assert on_the_bare_image(PREDICT).strip() == "[None, 'not_an_image'] (2, 3)"
