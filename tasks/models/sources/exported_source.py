"""A file of torch.export.save -> a bundle. Opening one may execute what its maker wrote, so it is opened on one's word only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.errors import ModelError
from tasks.models.bundle import read_bundle, read_labels, write_bundle
from tasks.models.fingerprint import file_digest
from tasks.models.sources import IMAGENET
from tasks.models.sources.trial import try_network
from tasks.models.spec import ModelSpec, Preprocessing

NETWORK = "network.pt2"

DYNAMIC = (
    "Export it for any batch: torch.export.export(network.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), "
    "with two images."
)


def from_exported(
    folder: Path,
    file: Path,
    *,
    labels: Path,
    preprocessing: Preprocessing = IMAGENET,
    name: str | None = None,
    version: str = "1",
    sha256: str | None = None,
    trusted: bool = False,
) -> None:
    """Fill a folder that exists with the bundle of a file. Raises ModelError, which names the file and what to do.

    The program takes float pictures, normalised, [n, 3, crop, crop], and gives logits [n, classes]. It is opened with
    `trusted` and the file's `sha256` only.
    """
    import torch

    from tasks.models.loading import load_classifier

    names = read_labels(labels)
    if not file.is_file():
        raise ModelError(f"{file} does not exist. Give the path of a file of torch.export.save.")
    if not trusted or sha256 is None:
        raise ModelError(
            f"{file} may execute code when it is opened. If you know who made it, say that it is trusted and give its sha256 "
            f"(sha256sum {file.name}), as its maker told you; else ask for ONNX, which executes none."
        )
    (folder / NETWORK).write_bytes(file.read_bytes())
    if (digest := file_digest(folder / NETWORK)) != sha256.lower():
        raise ModelError(
            f"{file} has the sha256 {digest}, and {sha256} was expected. It was not opened: fetch it again."
        )
    spec = ModelSpec(
        name=name or file.stem,
        version=version,
        architecture="torch.export",
        weights=NETWORK,
        preprocessing=preprocessing,
        trusted=True,
        provenance={"file": file.name},
    )
    write_bundle(folder, spec, names)
    classifier = load_classifier(read_bundle(folder))

    def forward(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return classifier(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    try_network(forward, file, preprocessing.crop, labels, len(names), DYNAMIC)
