"""A file of ONNX -> a bundle. The pixels' normalisation becomes part of the graph, and the network stays what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models import onnx_form
from tasks.models.bundle import read_labels, write_bundle
from tasks.models.fingerprint import file_digest
from tasks.models.sources import IMAGENET
from tasks.models.sources.onnx_checks import check_graph, check_input, precision_of, read_graph
from tasks.models.sources.trial import Forward, try_network
from tasks.models.spec import ModelSpec, Preprocessing

NETWORK = "network.onnx"

DYNAMIC = (
    "Export it for any batch: torch.onnx.export(network, (images,), FILE, dynamo=True, external_data=False, "
    'dynamic_shapes=({0: "n"},)), with two images.'
)


def from_onnx(
    folder: Path,
    file: Path,
    *,
    labels: Path,
    preprocessing: Preprocessing = IMAGENET,
    name: str | None = None,
    version: str = "1",
    sha256: str | None = None,
) -> None:
    """Fill a folder that exists with the bundle of a file. Raises ModelError, which names the file and what to do.

    The graph takes float pictures, normalised, [n, 3, crop, crop] or [n, crop, crop, 3]; or uint8 [n, crop, crop, 3], and then
    normalises them itself. It gives logits [n, classes], or a Softmax of them, which is cut off. A file for one batch size
    becomes one for any where the graph bears it. `sha256` is what the file must have.
    """
    names = read_labels(labels)
    model = read_graph(file)
    digest = file_digest(file)
    if sha256 not in (None, digest):
        raise ModelError(f"{file} has the sha256 {digest}, and {sha256} was expected. Fetch the file again.")
    check_input(file, model, preprocessing.crop)
    onnx_form.free_batch(model)
    if (
        onnx_form.inputs(model.graph)[0].type.tensor_type.elem_type
        != require("onnx", onnx_form.WHAT_FOR).TensorProto.UINT8
    ):
        onnx_form.take_pixels(model, preprocessing)
    onnx_form.give_logits(model)
    check_graph(model, lambda error: f"{file} cannot be made to take pixels: {error} {DYNAMIC}")
    (folder / NETWORK).write_bytes(onnx_form.to_bytes(model))
    try_network(open_forward(folder / NETWORK, file), file, preprocessing.crop, labels, len(names), DYNAMIC)
    spec = ModelSpec(
        name=name or file.stem,
        version=version,
        architecture="onnx",
        weights=NETWORK,
        precision=precision_of(model),
        preprocessing=preprocessing,
        provenance={"file": file.name, "sha256": digest},
    )
    write_bundle(folder, spec, names)


def open_forward(network: Path, file: Path) -> Forward:
    """Pixels to what the graph gives, by ONNX Runtime. Raises ModelError where it does not take the graph."""
    runtime = require("onnxruntime", onnx_form.WHAT_FOR)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an error, and is said once
    try:
        session = runtime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors are of no common class
        raise ModelError(
            f"{file} does not load in ONNX Runtime {runtime.__version__}: {str(error).strip().splitlines()[0][:300]} Export the "
            f"network again, in float32. {DYNAMIC}"
        ) from None
    return lambda pixels: np.asarray(session.run(None, {session.get_inputs()[0].name: pixels})[0])
