"""A bundle in the form that a runtime reads, made once on a machine and kept.

A network in ONNX is read from the bundle itself. One that is code is exported in the bundle's precision, without its
normalisation, and that is put in front as it is in front of a file from elsewhere (onnx_form.py).
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models import onnx_form
from tasks.models.bundle import Bundle
from tasks.whole import whole_folder

if TYPE_CHECKING:
    from onnx import ModelProto

    from tasks.models.loading import Classifier

# What the export gives; it rises when that changes, so that a home does not keep an older network.
EXPORT = 1

# The exporter's own, and for the half precisions the first in which convolutions may be bfloat16.
OPERATOR_SETS = {"fp32": 20, "bf16": 22, "fp16": 22}

# torch traces one module at a time.
TRACING = threading.Lock()


def onnx_file(bundle: Bundle, compiled: Path) -> Path:
    """The file of ONNX that runs this bundle: its own, or what was exported of it. model_id checks the bundle's files."""
    identity = bundle.model_id
    if bundle.spec.form == "onnx":
        return bundle.network
    folder = compiled / f"{identity}-onnx-{version('torch')}-{EXPORT}"
    with TRACING:
        if not (folder / "network.onnx").exists():
            content = onnx_form.to_bytes(export(bundle))
            keep(folder, lambda scratch: (scratch / "network.onnx").write_bytes(content))
    return folder / "network.onnx"


def keep(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder under a scratch name, then rename it; of workers that race the first one's stays."""
    try:
        with whole_folder(folder) as scratch:
            write(scratch)
    except OSError:
        if not folder.exists():
            raise


def export(bundle: Bundle) -> ModelProto:
    """A bundle whose network is code as ONNX in its precision. Raises ModelError where torch cannot write it."""
    from tasks.models.loading import load_classifier

    require("onnxscript", onnx_form.WHAT_FOR)
    classifier = load_classifier(bundle)
    try:
        model = _exported(classifier, bundle)
        if bundle.spec.precision == "bf16":
            _round_to_bfloat16(model)
        onnx_form.take_pixels(model, bundle.spec.preprocessing)
        onnx_form.give_logits(model)
        require("onnx", onnx_form.WHAT_FOR).checker.check_model(model, full_check=True)
    except Exception as error:  # The exporter raises as many errors as there are networks.
        raise ModelError(
            f"torch {version('torch')} cannot write {bundle.spec.architecture} as ONNX in {bundle.spec.precision}: "
            f"{str(error).strip().splitlines()[0]} Set AFTERIMAGE_RUNTIME to auto for this model."
        ) from error
    return model


def _exported(classifier: Classifier, bundle: Bundle) -> ModelProto:
    """The network alone, for any batch."""
    import torch

    crop = bundle.spec.preprocessing.crop
    with torch.inference_mode(), _quiet():
        program = torch.onnx.export(
            classifier.network,
            (torch.zeros(2, 3, crop, crop, dtype=classifier.dtype),),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: onnx_form.BATCH},),
            opset_version=OPERATOR_SETS[bundle.spec.precision],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _round_to_bfloat16(model: ModelProto) -> None:
    """The exporter folds BatchNorm into the convolutions in float32 and leaves it so, beside bfloat16 activations."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    del model.graph.value_info[:]  # it says float32 too
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(kind), tensor.name))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its steps on standard output, and of optional packages in the log."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)
