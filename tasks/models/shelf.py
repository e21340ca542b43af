"""The bundles that are kept by name, under AFTERIMAGE_HOME/models: a pipeline says `model = "bundle:NAME"`.

A bundle comes in whole or not at all: it is copied, pinned, loaded and tried under a scratch name first.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import ModelError
from tasks.models.bundle import Bundle, read_bundle, write_bundle
from tasks.whole import whole_folder

if TYPE_CHECKING:
    from tasks.models.runtimes import Logits
    from tasks.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def add(bundle: Bundle, settings: Settings) -> Bundle:
    """Keep a bundle under the name that its spec says, with the sha256 of each file.

    The same model under the same name is there already, and that is no error. Raises ModelError where the bundle cannot be
    used, or its name is taken.
    """
    name = bundle.spec.name
    if (settings.models / name).exists() and (kept := find(name, settings)).model_id == bundle.model_id:
        return kept
    with place(settings.models, name) as scratch:
        for file in bundle.files:
            shutil.copyfile(file, scratch / file.name)
        write_bundle(scratch, bundle.spec, bundle.labels)
        copied = read_bundle(scratch)
        if copied.model_id != bundle.model_id:
            raise ModelError(f"{bundle.folder} changed while it was copied. Try again when nobody writes to it.")
        try_out(copied, settings)
    return find(name, settings)


@contextmanager
def place(folder: Path, name: str) -> Iterator[Path]:
    """A scratch folder that becomes FOLDER/NAME at the end of the block, and is gone after an error.

    Raises ModelError for a name that is none, or that is taken.
    """
    if not NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} is no name for a model. Begin with a letter or a digit, go on with letters, digits, dots, dashes and "
            "underscores, at most 100: give one with --name."
        )
    if (folder / name).exists():
        raise ModelError(
            f"{folder / name} is there already, and holds another model. Give another --name, or remove that one: "
            f"./afterimage models remove {name}."
        )
    with whole_folder(folder / name) as scratch:
        yield scratch


def try_out(bundle: Bundle, settings: Settings) -> None:
    """Load a bundle and predict a grey and a noisy image. Raises ModelError where the answer is of no use."""
    import numpy as np

    from tasks.models.runtimes import open_runtime

    runtime = open_runtime(bundle, settings)
    try:
        crop = bundle.spec.preprocessing.crop
        noise = np.random.default_rng(0).integers(0, 256, (crop, crop, 3), np.uint8)
        for pixels in (np.full((crop, crop, 3), 127, np.uint8), noise):
            check_logits(bundle, runtime.predict(pixels[None]))
    finally:
        runtime.close()


def check_logits(bundle: Bundle, logits: Logits) -> None:
    """Whether one image's logits are what this bundle should give. Raises ModelError."""
    import numpy as np

    if logits.shape != (1, len(bundle.labels)):
        raise ModelError(
            f"{bundle.network} gives {list(logits.shape)} numbers for one image, and {bundle.folder / bundle.spec.labels} has "
            f"{len(bundle.labels)} labels. Correct the labels file: one label a line, in the order of the outputs."
        )
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{bundle.weights} gives an output that is not finite (NaN or infinite) for a plain image. Use other weights, or "
            "another precision."
        )


def find(name: str, settings: Settings) -> Bundle:
    """A bundle by its name. Raises ModelError, with the names that there are."""
    if not NAME.fullmatch(name) or not (settings.models / name / "model.toml").is_file():
        raise ModelError(
            f"There is no model {name!r} in {settings.models}. There is: {', '.join(names(settings)) or 'none'}. Add one with "
            "./afterimage models add."
        )
    return read_bundle(settings.models / name)


def names(settings: Settings) -> list[str]:
    """What is kept, in order."""
    return sorted(file.parent.name for file in settings.models.glob("*/model.toml") if NAME.fullmatch(file.parent.name))


def remove(name: str, settings: Settings) -> None:
    """Take a bundle away. What it predicted stays in the cache. Raises ModelError where there is none."""
    if not NAME.fullmatch(name) or not (settings.models / name).is_dir():
        find(name, settings)
    gone = Path(tempfile.mkdtemp(dir=settings.models, prefix="."))
    (settings.models / name).rename(gone / name)  # at once, so that nobody reads half a bundle
    shutil.rmtree(gone)
