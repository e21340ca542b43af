"""Who takes part: our command line, and the peers in each of their forms."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gate, meter, networks, workplace
from benchmarks.gate import Bar
from benchmarks.meter import CommandFailed, Usage
from benchmarks.networks import Network
from benchmarks.workplace import THEIRS, Workplace, outer_environment

OURS, LOOP, DATALOADER, RAY, DAFT, SPDL = "Afterimage", "loop", "DataLoader", "Ray Data", "Daft", "SPDL"
FAMILIES = (LOOP, DATALOADER, RAY, DAFT, SPDL)
FP32, INT8 = f"{OURS} fp32", f"{OURS} int8"

# (family, module, form, workers): documented forms first. A ratio is against the best of a family's untuned forms.
_PEERS = (
    (LOOP, "sequential", "documented", 0),
    (DATALOADER, "dataloader", "documented", 0),
    (DATALOADER, "dataloader", "documented", 2),
    (DATALOADER, "dataloader", "documented", 4),
    (RAY, "ray_data", "documented", 2),
    (RAY, "ray_data", "reference", 2),
    (DAFT, "daft_frame", "documented", 2),
    (DAFT, "daft_frame", "reference", 2),
    (SPDL, "spdl_loader", "documented", 2),
    (LOOP, "sequential", "tuned", 2),
    (DATALOADER, "dataloader", "tuned", 2),
    (RAY, "ray_data", "tuned", 2),
    (DAFT, "daft_frame", "tuned", 2),
    (SPDL, "spdl_loader", "tuned", 2),
)


@dataclass(frozen=True)
class Contestant:
    """Somebody who turns a folder of photographs into rows of a SQLite file."""

    name: str
    family: str
    is_tuned: bool
    bar: Bar
    command: Callable[[Path, Path], list[str]]
    environment: dict[str, str]

    def run(self, place: Workplace, folder: Path) -> Usage:
        """One run into an empty database. Raises CommandFailed, also where photographs have no row."""
        database = self.database(place)
        for leftover in database.parent.glob(f"{database.name}*"):
            leftover.unlink()
        if self.family == OURS:  # The tables are there before, as after `./afterimage migrate`; rows are not.
            migrate = [str(workplace.OURS), "-m", "tasks", "migrate", "--database", f"sqlite:///{database}"]
            subprocess.run(migrate, env=self.environment, check=True, capture_output=True)
        scratch = tempfile.mkdtemp(prefix="bench-")  # short: Ray puts sockets below it
        try:
            environment = {**self.environment, "RAY_TMPDIR": scratch}
            usage = meter.run(self.command(folder, database), environment, place.folder("logs") / database.stem)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        rows, expected = len(gate.read_answers(database)), sum(1 for _ in folder.iterdir())
        if rows != expected:
            raise CommandFailed(f"{self.name} wrote {rows} rows for {expected} photographs")
        return usage

    def database(self, place: Workplace) -> Path:
        """Where its rows lie after a run."""
        return place.folder("databases") / f"{self.name.replace(' ', '-').replace(',', '')}.db"


def ours(network: Network) -> list[Contestant]:
    """Our command line in fp32 and in int8."""

    def command(folder: Path, database: Path) -> list[str]:
        return networks.command(network.uri, folder, database)

    int8 = gate.INT8 if network.is_trained else gate.UNTRAINED_INT8
    return [
        Contestant(FP32, OURS, False, gate.EXACT, command, networks.environment(network.home)),
        Contestant(INT8, OURS, False, int8, command, networks.environment(network.int8_home)),
    ]


def peers(network: Network, families: tuple[str, ...]) -> list[Contestant]:
    """All forms of some families."""
    return [_peer(network, *one) for one in _PEERS if one[0] in families]


def _peer(network: Network, family: str, module: str, form: str, workers: int) -> Contestant:
    def command(folder: Path, database: Path) -> list[str]:
        return [
            *(str(THEIRS), "-m", f"benchmarks.peers.{module}", str(folder), "--form", form, "--workers", str(workers)),
            *("--network", network.name, "--weights", str(network.weights)),
            *("--converted", str(network.converted), "--database", str(database)),
        ]

    name = family
    if family == DATALOADER:
        name += f" {workers} workers"
    if form != "documented":
        name += f", {form}"
    other_pixels = form == "documented" and family in (RAY, DAFT)
    bar = gate.OTHER_PIXELS if other_pixels else gate.EXACT
    return Contestant(name, family, form == "tuned", bar, command, outer_environment())
