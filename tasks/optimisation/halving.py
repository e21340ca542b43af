"""bf16 and fp16: the same network, whose weights are kept and computed with in two bytes.

Half the size everywhere; faster on GPUs and on processors with bf16 units, and slower on most others, which the report
shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tasks.errors import ModelError
from tasks.models.bundle import write_bundle
from tasks.models.spec import Option
from tasks.optimisation.making import Task


def make(task: Task, folder: Path) -> Mapping[str, Option]:
    """Write task.original with weights of two bytes into the folder; see making.py."""
    from safetensors.torch import save

    from tasks.models.loading import DTYPES, read_weights

    original, dtype = task.original, DTYPES[task.precision]
    if original.spec.form != "torch" or original.spec.precision != "fp32":
        raise ModelError(
            f"{original.folder} is {original.spec.precision} in the form {original.spec.form}, and {task.precision} is made from "
            "fp32 weights of an architecture that is code. Name the bundle that it was made from."
        )
    weights = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in read_weights(original.weights).items()
    }
    broken = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{original.weights}: {broken[0]} has numbers beyond the range of {task.precision}. Take --precision bf16, whose "
            "range is that of fp32."
        )
    provenance: dict[str, Option] = {
        "made_from": original.model_id,
        "method": f"weights rounded to {task.precision}",
        "torch": version("torch"),
    }
    spec = replace(
        original.spec,
        name=task.name,
        precision=task.precision,
        weights="weights.safetensors",
        labels="labels.txt",
        files={},
        provenance=provenance,
    )
    write_bundle(folder, spec, original.labels, save(weights))
    return {}
