"""The plain values that travel from step to step, and through Airflow's XCom as dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from tasks.cache.runs import RunKey, Staging
from tasks.pipelines import Pipeline
from tasks.window import EVERYTHING, Window


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One execution of a pipeline, as it was asked for.

    `name` is the pipeline's name in the run row; None for a folder that the command line was pointed at. With `retry` it looks
    at failures that are due and lists nothing. `keys` are those that were announced, and then it
    looks at these alone, as they are now; its `run_type` is `events`.
    """

    key: RunKey
    run_type: str
    pipeline: Pipeline
    name: str | None
    window: Window = EVERYTHING
    force: bool = False
    limit: int | None = None
    dry_run: bool = False
    retry: bool = False
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ShardDescriptor:
    """What one mapped task gets: where its rows are staged and all that was frozen at deduplicate. Never keys.

    `models` are the URIs of a cascade in their order, or one; `margins` are those of all but the last. `thumbnails` is where
    small pictures are written to; None, as in descriptors of older versions, where none are.
    """

    run_no: int
    generation: int
    shard: int
    shards: int
    count: int
    images: str
    source: str
    models: tuple[str, ...]
    margins: tuple[float, ...]
    model_id: str
    model_no: int
    commit_images: int
    force: bool
    cache: str
    thumbnails: str | None = None

    @property
    def staging(self) -> Staging:
        """The staging that the shard's rows belong to."""
        return Staging(self.run_no, self.generation)

    @property
    def label(self) -> str:
        """How a person reads it: `shard 3/16 · 4,096 images`."""
        return f"shard {self.shard + 1}/{self.shards} · {self.count:,} images"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, a few hundred bytes, for XCom."""
        return {**asdict(self), "models": list(self.models), "margins": list(self.margins)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict."""
        return cls(**{**values, "models": tuple(values["models"]), "margins": tuple(values["margins"])})


@dataclass(frozen=True, slots=True)
class RangeDescriptor:
    """What one mapped task of a listing gets: which range it begins with. Never keys: these are in the cache."""

    run_no: int
    generation: int
    number: int
    ranges: int
    cache: str

    @property
    def staging(self) -> Staging:
        """The staging that the range belongs to."""
        return Staging(self.run_no, self.generation)

    @property
    def label(self) -> str:
        """How a person reads it: `range 3/16`."""
        return f"range {self.number + 1}/{self.ranges}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for XCom."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict."""
        return cls(**values)
