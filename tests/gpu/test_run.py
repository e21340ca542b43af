"""The whole road on a CUDA device; it needs the program's own packages, which a bare CUDA image lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

NVJPEG_AGREES = 196  # of 200 photographs, at least, with exact-1 on top-1

Rows = dict[str, tuple[tuple[str, str, str, str], float]]


@pytest.fixture(autouse=True)
def _packages() -> None:
    for package in ("sqlalchemy", "pydantic", "safetensors"):
        pytest.importorskip(package)


def rows_on(device: str, home: Path, folder: Path, **pipeline: Any) -> Rows:
    """{key: (its row, its score)} of a run on a device. torch runs the network on both: other runtimes may be missing."""
    from tests.runner import Runner, outcomes

    database = f"sqlite:///{folder / device}.db"
    runner = Runner(home, database, {"device": device, "runtime": "torch"}, **pipeline)
    assert set(outcomes(runner.run())) == {"predicted"}
    return {key: (row[:4], row[4]) for key, row in runner.predictions().items()}


def test_a_run_on_the_gpu_gives_the_rows_of_a_run_on_the_cpu(home: Path, tmp_path: Path) -> None:
    from tests.pictures import write_pictures

    write_pictures(tmp_path / "images", 50)
    cpu, cuda = (
        rows_on(
            device,
            home,
            tmp_path,
            images=str(tmp_path / "images"),
            model="torchvision:resnet18?weights=random&seed=0",
        )
        for device in ("cpu", "cuda")
    )

    assert len(cpu) == 50
    assert {key: row for key, (row, _) in cuda.items()} == {key: row for key, (row, _) in cpu.items()}
    assert {key: score for key, (_, score) in cuda.items()} == pytest.approx(
        {key: score for key, (_, score) in cpu.items()}, abs=1e-4
    )


@pytest.mark.photographs
def test_photographs_get_the_same_answers_on_the_gpu_as_on_the_cpu(
    home: Path, tmp_path: Path, photographs: Path, squeezenet: str
) -> None:
    cpu, cuda = (
        rows_on(device, home, tmp_path, images=str(photographs), model=squeezenet) for device in ("cpu", "cuda")
    )

    assert len(cpu) == 200
    assert {key: row for key, (row, _) in cuda.items()} == {key: row for key, (row, _) in cpu.items()}
    assert {key: score for key, (_, score) in cuda.items()} == pytest.approx(
        {key: score for key, (_, score) in cpu.items()}, abs=1e-4
    )


@pytest.mark.photographs
def test_photographs_decoded_on_the_gpu_get_nearly_the_same_answers(
    home: Path, tmp_path: Path, photographs: Path, squeezenet: str
) -> None:
    exact = rows_on("cpu", home, tmp_path, images=str(photographs), model=squeezenet)
    bundle = with_nvjpeg(squeezenet, home, tmp_path / "bundle")

    found = rows_on("cuda", home, tmp_path, images=str(photographs), model=str(bundle))

    assert len(found) == len(exact) == 200
    same = sum(found[key][0][3] == exact[key][0][3] for key in exact)
    assert same >= NVJPEG_AGREES
    assert {row[2] for row, _ in found.values()}.isdisjoint({row[2] for row, _ in exact.values()}), "another model_id"


def with_nvjpeg(model: str, home: Path, folder: Path) -> Path:
    """A bundle of the same network that declares nvjpeg-1."""
    from tasks.models.bundle import write_bundle
    from tasks.models.resolving import resolve_model
    from tasks.settings import load_settings

    made_from = resolve_model(model, load_settings(home=home))
    assert made_from.weights is not None
    spec = made_from.spec
    folder.mkdir()
    decoded_there = replace(spec, preprocessing=replace(spec.preprocessing, decode="nvjpeg-1"))
    write_bundle(folder, decoded_there, made_from.labels, made_from.weights.read_bytes())
    return folder
