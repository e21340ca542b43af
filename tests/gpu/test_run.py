"""A whole run on a CUDA device; it needs the program's own packages, which a bare CUDA image lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu


def test_a_run_on_the_gpu_gives_the_rows_of_a_run_on_the_cpu(home: Path, tmp_path: Path) -> None:
    for package in ("sqlalchemy", "pydantic", "safetensors", "openvino"):
        pytest.importorskip(package)
    from tests.pictures import write_pictures
    from tests.runner import Runner, outcomes

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
