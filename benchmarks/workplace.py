"""Where the benchmark works and how much it does: the options of the command line, with the paths that follow from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OURS = PROJECT / ".venv" / "bin" / "python"
THEIRS = PROJECT / ".venv-bench" / "bin" / "python"


@dataclass(frozen=True)
class Workplace:
    """`data` holds the photographs and the real weights; all that is made lies in `work` and can be deleted."""

    data: Path
    work: Path
    images: int
    rounds: int
    sizes: tuple[int, int]
    large_images: int
    cached_images: int
    families: tuple[str, ...] | None

    @property
    def photographs(self) -> Path:
        """The folder of real photographs, with labels.csv."""
        return self.data / "imagenet-sample"

    @property
    def squeezenet(self) -> Path:
        """Real weights of SqueezeNet 1.0."""
        return self.data / "squeezenet1_0.safetensors"

    def folder(self, name: str) -> Path:
        """A folder below `work`, made if it is not there."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


# OpenVINO knows one switch only, CI; without it each import is reported to its makers, by a process of its own.
_SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "DAFT_ANALYTICS_ENABLED": "0",
    "SCARF_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
    "CI": "true",
}


def outer_environment(**changes: str) -> dict[str, str]:
    """The environment of a contestant: no settings of the user's installation, and nobody reports home meanwhile."""
    # Compiled modules are kept for everybody, as on any machine but a container's build: without, each start compiles.
    without = ("AFTERIMAGE_", "AIRFLOW", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    # Unbuffered: the meter's clock stops at the line with the result, and must see it when it is written.
    return {**kept, **_SILENT, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **changes}
