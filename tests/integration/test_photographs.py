"""Real photographs and real weights, on both databases, from a folder and from S3."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.settings import load_settings
from tasks.storage.s3 import client
from tests.runner import Runner, outcomes

pytestmark = pytest.mark.photographs

# Known of these 200 photographs and these weights: eager torch fp32 is right on 128 of them.
RIGHT = 128


@pytest.fixture(scope="session")
def truth(photographs: Path) -> dict[str, int]:
    """{key: class index} of the photographs."""
    with open(photographs / "labels.csv", newline="") as file:
        return {row["key"]: int(row["label"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def eager(photographs: Path, squeezenet: str, home: Path) -> dict[str, tuple[int, float]]:
    """{key: (top-1 index, its score)} by torchvision's own transforms and an eager network."""
    import torch
    from PIL import Image, ImageOps
    from safetensors.torch import load_file
    from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0

    network = squeezenet1_0()
    network.load_state_dict(load_file(squeezenet.partition("weights=")[2]))
    network.eval()
    transforms = SqueezeNet1_0_Weights.DEFAULT.transforms()
    answers = {}
    with torch.inference_mode():
        for path in sorted(photographs.glob("*.JPEG")):
            image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            scores = network(transforms(image)[None]).softmax(1)[0]
            answers[path.name] = (int(scores.argmax()), float(scores.max()))
    return answers


def rows(runner: Runner) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in runner.rows("SELECT * FROM v_prediction")}


@pytest.fixture(params=["folder", "s3"])
def source(
    request: pytest.FixtureRequest, photographs: Path, bucket: str, s3_settings: dict[str, str]
) -> tuple[str, dict[str, str]]:
    """The photographs as an images URI, and the settings that reach it."""
    if request.param == "folder":
        return str(photographs), {}
    s3 = client(load_settings(**s3_settings))
    for path in photographs.glob("*.JPEG"):
        s3.put_object(Bucket=bucket, Key=path.name, Body=path.read_bytes())
    return f"s3://{bucket}/", s3_settings


SEEN: dict[str, dict[str, tuple[str, str, str, float]]] = {}


def test_200_photographs_as_eager_torch_sees_them(
    request: pytest.FixtureRequest,
    home: Path,
    database_url: str,
    source: tuple[str, dict[str, str]],
    squeezenet: str,
    eager: dict[str, tuple[int, float]],
    truth: dict[str, int],
) -> None:
    runner = Runner(home, database_url, source[1], images=source[0], model=squeezenet)
    counts = runner.run()
    assert outcomes(counts) == {"predicted": 200}
    found = rows(runner)
    assert {key: row["label_index"] for key, row in found.items()} == {key: best for key, (best, _) in eager.items()}
    assert max(abs(row["score"] - eager[key][1]) for key, row in found.items()) < 1e-4
    assert abs(sum(row["label_index"] == truth[key] for key, row in found.items()) - RIGHT) <= 1

    again = runner.run()
    assert outcomes(again) == {"cached": 200}
    assert (again["reads"], again["forward_passes"]) == (0, 0)
    assert rows(runner) == found

    same = {key: (row["digest"], row["model_id"], row["label"], row["score"]) for key, row in found.items()}
    SEEN[request.node.callspec.id] = same
    first = next(iter(SEEN.values()))
    assert {key: value[:3] for key, value in same.items()} == {key: value[:3] for key, value in first.items()}
    assert max(abs(same[key][3] - first[key][3]) for key in same) < 1e-5


def test_copies_are_reused_overwrites_predicted_and_a_new_model_stands_beside(
    home: Path, tmp_path: Path, database_url: str, photographs: Path, squeezenet: str
) -> None:
    images = tmp_path / "photographs"
    shutil.copytree(photographs, images)
    runner = Runner(home, database_url, images=str(images), model=squeezenet)
    runner.run()
    keys = sorted(path.name for path in images.glob("*.JPEG"))
    for key in keys[:50]:
        shutil.copy(images / key, images / f"copy-of-{key}")
    assert outcomes(runner.run()) == {"cached": 200, "reused": 50}

    blurred = (images / keys[60]).read_bytes() + b"\x00"
    (images / keys[60]).write_bytes(blurred)
    assert outcomes(runner.run()) == {"cached": 249, "predicted": 1}

    for path in images.glob("copy-of-*"):
        path.unlink()
    other = Runner(home, database_url, images=str(images), model="torchvision:squeezenet1_1?weights=random&seed=0")
    assert outcomes(other.run()) == {"predicted": 200}
    living = "SELECT model_id, count(*) AS images FROM v_prediction WHERE deleted_at IS NULL GROUP BY model_id"
    assert [row["images"] for row in other.rows(living)] == [200, 200]
