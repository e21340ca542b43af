"""model.toml checked by pydantic: a table -> ModelSpec, or a line for each thing that is wrong with it.

Apart from spec.py and imported only where a manifest is read, because a machine that runs a model made in memory needs
torch and no pydantic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ModelError
from tasks.models.spec import NEWEST, Channels, ModelSpec, Policy, Precision, Preprocessing

FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]


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
    options: Mapping[str, bool | int | float | str] = Field(default_factory=dict)


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
        key = ".".join(str(part) for part in problem["loc"]) or "the table"
        yield f"{manifest}: {key} = {problem['input']!r}: {problem['msg']}. Correct model.toml."
