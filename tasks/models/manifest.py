"""model.toml checked by pydantic: a table -> ModelSpec, or a line for each thing that is wrong with it.

Apart from spec.py and imported only where a manifest is read, because a machine that runs a model made in memory needs
torch and no pydantic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ModelError
from tasks.models.spec import GRAPHS, NEWEST, Channels, ModelSpec, Option, Policy, Precision, Preprocessing


def _beside_the_manifest(name: str) -> str:
    """The name of a file in the bundle's folder, as long as file systems allow."""
    if len(name.encode()) > 255:
        raise ValueError("expected the name of a file in the bundle's folder, of at most 255 bytes")
    return name


# A file of the bundle's own folder; no dot in front, so that it is neither that folder nor the one above.
FileName = Annotated[str, Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$"), AfterValidator(_beside_the_manifest)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _newest(policy: object) -> object:
    return NEWEST.get(policy, policy) if isinstance(policy, str) else policy


class _Preprocessing(BaseModel):
    """The table [preprocessing]."""

    model_config = ConfigDict(extra="forbid")

    decode: Annotated[Policy, BeforeValidator(_newest)] = "exact-1"
    resize: Annotated[int, Field(ge=1, le=4096)]
    crop: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Channels
    std: Channels

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}; make resize at least as large")
        if any(value <= 0 for value in self.std):
            raise ValueError("every std must be above 0")
        return self


class _Manifest(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    version: str = "1"
    architecture: Annotated[str, Field(min_length=1)]
    weights: FileName = "weights.safetensors"
    labels: FileName = "labels.txt"
    precision: Precision = "fp32"
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    preprocessing: _Preprocessing
    options: Mapping[str, Option] = Field(default_factory=dict)
    network: FileName | None = None
    pruned: bool = False
    trusted: bool = False
    files: Mapping[FileName, Digest] = Field(default_factory=dict)
    provenance: Mapping[str, Option] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_of_one_form(self) -> Self:
        is_graph = self.architecture in GRAPHS
        if self.precision == "int8" and not is_graph:
            raise ValueError(
                f"precision int8 needs a network that is quantised, and {self.architecture} is code with floating-point "
                "weights; make one with ./afterimage models optimise --precision int8"
            )
        if (self.network is not None) != (self.architecture == "openvino"):
            raise ValueError('`network` names the .xml file of architecture = "openvino", and belongs to no other')
        if is_graph and self.pruned:
            raise ValueError("`pruned` belongs to networks that are code: a file that holds its network needs none")
        return self

    @model_validator(mode="after")
    def _is_trusted(self) -> Self:
        if self.architecture == "torch.export" and not (self.trusted and self.weights in self.files):
            raise ValueError(
                f"torch.export.load may execute what the file says, so it needs trusted = true and the sha256 of "
                f"{self.weights} under [files]; add both if you know who made the file"
            )
        return self


def check_manifest(manifest: Path, table: Mapping[str, Any]) -> ModelSpec:
    """The spec that the table of a model.toml says. Raises ModelError with every key that is wrong."""
    try:
        checked = _Manifest(**table)
    except ValidationError as error:
        raise ModelError("\n".join(_problems(manifest, error))) from None
    values = checked.model_dump()
    return ModelSpec(**{**values, "preprocessing": Preprocessing(**values["preprocessing"])})


def _problems(manifest: Path, error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        found = f"{key} = {problem['input']!r}: " if key else ""
        yield f"{manifest}: {found}{problem['msg'].removeprefix('Value error, ')}. Correct model.toml."
