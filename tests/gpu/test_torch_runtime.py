"""The forward pass on a CUDA device, against eager torch on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.models.resolving import resolve_model
from tasks.models.runtimes import open_runtime
from tasks.settings import load_settings
from tests.pictures import write_pictures
from tests.runner import Runner, outcomes

pytestmark = pytest.mark.gpu

NETWORKS = ("mobilenet_v3_small", "squeezenet1_0", "resnet18")


@pytest.mark.parametrize("name", NETWORKS)
def test_fp32_on_the_gpu_is_fp32(name: str, home: Path) -> None:
    settings = load_settings(home=home)
    bundle = resolve_model(f"torchvision:{name}?weights=random&seed=0", settings)
    crop = bundle.spec.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (8, crop, crop, 3), dtype=np.uint8)
    on_cpu = open_runtime(bundle, load_settings(home=home, device="cpu")).forward(pixels)
    on_gpu = open_runtime(bundle, load_settings(home=home, device="cuda")).forward(pixels)
    assert np.abs(on_cpu - on_gpu).max() < 1e-3
    assert (on_cpu.argmax(1) == on_gpu.argmax(1)).all()


def test_a_run_on_the_gpu_gives_the_rows_of_a_run_on_the_cpu(home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 50)
    rows = []
    for device in ("cpu", "cuda"):
        runner = Runner(
            home,
            f"sqlite:///{tmp_path / device}.db",
            {"device": device},
            images=str(tmp_path / "images"),
            model="torchvision:resnet18?weights=random&seed=0",
        )
        assert outcomes(runner.run()) == {"predicted": 50}
        rows.append({key: (row[0], row[1], row[2], row[3]) for key, row in runner.predictions().items()})
    assert rows[0] == rows[1]
