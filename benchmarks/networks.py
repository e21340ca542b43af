"""The networks of the benchmark: one file of weights for everybody, and our homes with the converted network in them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks import meter, photographs
from benchmarks.meter import Usage
from benchmarks.workplace import OURS, THEIRS, Workplace, outer_environment

MOBILENET, SQUEEZENET = "mobilenet_v3_small", "squeezenet1_0"


@dataclass(frozen=True)
class Network:
    """A network with weights. `home` and `int8_home` are homes of ours whose compiled networks are on disk already."""

    name: str
    weights: Path
    is_trained: bool
    home: Path
    int8_home: Path
    converted: Path

    @property
    def uri(self) -> str:
        """How our command line names it."""
        return model_uri(self.name, self.weights)


def model_uri(name: str, weights: Path) -> str:
    """A torchvision network with weights from a file."""
    return f"torchvision:{name}?weights={weights}"


def prepare(place: Workplace, name: str) -> Network:
    """Weights, homes, conversion, quantisation and the compiled resize, once: on disk when the first clock starts."""
    weights = place.squeezenet if name == SQUEEZENET else _untrained(place, name)
    home, int8_home = place.folder(f"home-{name}"), place.work / f"home-{name}-int8"
    converted = _converted(place, name, weights, home)
    if not int8_home.exists():
        _quantise_home(place, home, int8_home, converted)
    for one in (home, int8_home):
        log = place.folder("logs") / f"kernel-{one.name}"
        meter.run([str(OURS), "-m", "benchmarks.probes.kernel"], environment(one), log)
    return Network(name, weights, name == SQUEEZENET, home, int8_home, converted)


def predict(uri: str, folder: Path, database: Path, home: Path, log: Path) -> Usage:
    """One run of our command line, as a user types it."""
    return meter.run(command(uri, folder, database), environment(home), log)


def command(uri: str, folder: Path, database: Path) -> list[str]:
    """Our command line."""
    return [
        *(str(OURS), "-m", "tasks", "predict", "--images", str(folder), "--model", uri),
        *("--database", f"sqlite:///{database}", "--json"),
    ]


def environment(home: Path) -> dict[str, str]:
    """The environment of our command line."""
    return outer_environment(AFTERIMAGE_HOME=str(home), AFTERIMAGE_DEVICE="cpu")


def _untrained(place: Workplace, name: str) -> Path:
    weights = place.folder("weights") / f"{name}.safetensors"
    if not weights.exists():
        scratch = weights.with_suffix(".scratch")
        arguments = ["-m", "benchmarks.probes.untrained", name, str(photographs.real(place)), str(scratch)]
        meter.run([str(OURS), *arguments], outer_environment(), place.folder("logs") / f"untrained-{name}")
        scratch.rename(weights)
    return weights


def _converted(place: Workplace, name: str, weights: Path, home: Path) -> Path:
    """Where our first run left the converted network; which run that is does not matter, so it is one of its own."""
    database = place.folder("databases") / "first.db"
    database.unlink(missing_ok=True)
    usage = predict(
        model_uri(name, weights), photographs.calibration(place), database, home, place.folder("logs") / f"first-{name}"
    )
    return next((home / "compiled").glob(f"{usage.result['model_id']}-openvino-*")) / "model.xml"


def _quantise_home(place: Workplace, home: Path, int8_home: Path, converted: Path) -> None:
    """A home whose converted network is the int8 one.

    This is a device of the benchmark and of nothing else: the bundle still declares fp32, and its model_id stands for fp32.
    It shows what the pipeline does with a quantised network before there is a bundle that declares one.
    """
    scratch = int8_home.with_name(f"{int8_home.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(home / "bundles", scratch / "bundles")
    target = scratch / converted.relative_to(home)
    arguments = ["-m", "benchmarks.probes.quantising", str(converted), str(photographs.calibration(place)), str(target)]
    meter.run([str(THEIRS), *arguments], outer_environment(), place.folder("logs") / f"quantising-{int8_home.name}")
    scratch.rename(int8_home)
