"""Bundles that somebody else made: what they name lies in their own folder, and nothing of them is executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.errors import ModelError
from tasks.models.bundle import read_bundle
from tasks.models.resolving import resolve_model
from tasks.models.spec import Preprocessing
from tasks.settings import load_settings
from tests.pictures import LABELS, unpin, write_small_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle", pinned=True)


def renamed(folder: Path, old: str, new: str) -> None:
    manifest = folder / "model.toml"
    text = manifest.read_text(encoding="utf-8")
    assert old in text
    manifest.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/passwd", "..", ".", ".hidden", "a\\\\b", "a\\u0000b", "a\\nb", ""]
)
@pytest.mark.parametrize("key", ["labels", "weights", "files"])
def test_a_name_that_leads_elsewhere_is_refused(folder: Path, key: str, name: str) -> None:
    if key == "files":
        renamed(folder, "[files]\n", f'[files]\n"{name}" = "{"0" * 64}"\n')
    else:
        value = {"labels": "labels.txt", "weights": "weights.safetensors"}[key]
        renamed(folder, f'{key} = "{value}"', f'{key} = "{name}"')
    with pytest.raises(ModelError, match=key):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["labels.txt", "weights.safetensors"])
def test_a_link_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """Else the lines of any file that the worker may read would be labels, in rows that others may read."""
    secret = tmp_path / name
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    with pytest.raises(ModelError, match="leads out of the bundle"):
        read_bundle(folder)
    (folder / name).unlink()
    secret.rename(folder / f"real-{name}")
    (folder / name).symlink_to(f"real-{name}")
    assert read_bundle(folder).labels == LABELS, "a link inside the bundle is nobody's harm"


def test_objects_that_are_called_like_folders_are_not_copied(
    bucket: str, s3_settings: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    from tasks.storage.s3 import client

    settings = load_settings(home=tmp_path / "home", **s3_settings)
    store = client(settings)
    for file in folder.iterdir():
        store.put_object(Bucket=bucket, Key=f"model/{file.name}", Body=file.read_bytes())
    for name in ("..", ".", "/etc/passwd", "../../escaped.txt", "deep/../../escaped.txt"):
        store.put_object(Bucket=bucket, Key=f"model/{name}", Body=b"escaped")
    found = resolve_model(f"s3://{bucket}/model", settings)
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert list(tmp_path.rglob("escaped.txt")) == []


@pytest.mark.parametrize("where", ["above", "absolute"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_weights_of_onnx_in_a_file_elsewhere_are_not_read(runtime: str, where: str, tmp_path: Path) -> None:
    """`models add` refuses such a file; here somebody has written the bundle by hand, and the other file is a good one."""
    pytest.importorskip("onnx")
    pytest.importorskip(runtime)
    from tasks.models.runtimes import open_runtime

    folder = onnx_bundle(tmp_path)
    settings = load_settings(home=tmp_path / "home", device="cpu", runtime=runtime)
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    opened = open_runtime(read_bundle(folder), settings)
    assert opened.predict(pixels).shape == (1, len(LABELS)), "with its weights inside it is a good bundle"
    opened.close()
    keep_elsewhere(folder, {"above": "../outside.bin", "absolute": str(tmp_path / "outside.bin")}[where])
    with pytest.raises(Exception, match=r"outside the base directory|External data path validation failed"):
        open_runtime(read_bundle(folder), settings).predict(pixels)


def onnx_bundle(tmp_path: Path) -> Path:
    """A bundle of a small network in ONNX whose files are not pinned."""
    from tasks.models.sources.onnx_source import from_onnx
    from tests.graphs import MEAN, STD, graph, write

    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    (tmp_path / "bundle").mkdir()
    preprocessing = Preprocessing(resize=20, crop=16, mean=MEAN, std=STD)
    model = write(tmp_path / "network.onnx", graph())
    from_onnx(tmp_path / "bundle", model, labels=tmp_path / "labels.txt", preprocessing=preprocessing)
    unpin(tmp_path / "bundle")
    return tmp_path / "bundle"


def keep_elsewhere(folder: Path, location: str) -> None:
    """Move the largest weight of the network into a file outside of the bundle."""
    import onnx

    file = read_bundle(folder).weights
    model = onnx.load(file)
    tensor = max(model.graph.initializer, key=lambda found: len(found.raw_data))
    (folder.parent / "outside.bin").write_bytes(tensor.raw_data)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.ClearField("raw_data")
    file.write_bytes(model.SerializeToString())
