"""Files of torch.export become bundles on one's word only, and run on the torch runtime."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import ModelError
from tasks.models.architectures import SmallCnn
from tasks.models.bundle import read_bundle
from tasks.models.loading import Classifier
from tasks.models.runtimes import open_runtime
from tasks.models.runtimes.torch_runtime import TorchRuntime
from tasks.models.sources.exported_source import from_exported
from tasks.models.spec import Preprocessing
from tasks.settings import load_settings
from tests.pictures import LABELS

CROP = 16
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(resize=CROP, crop=CROP, mean=HALF, std=HALF)
ANY = {0: torch.export.Dim.DYNAMIC}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    return file


def network(classes: int = len(LABELS)) -> nn.Module:
    torch.manual_seed(0)
    return SmallCnn(classes, 4).eval()


def save(path: Path, module: nn.Module, batch: int = 2, dynamic: bool = True) -> Path:
    images = torch.randn(batch, 3, CROP, CROP)
    torch.export.save(torch.export.export(module, (images,), dynamic_shapes=(ANY,) if dynamic else None), path)
    return path


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def add(file: Path, labels: Path, **given: Any) -> Path:
    folder = file.parent / "bundle"
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {"trusted": True, "sha256": digest(file), "preprocessing": PREPROCESSING, **given}
    from_exported(folder, file, labels=labels, **options)
    return folder


def refusal(file: Path, labels: Path, **given: Any) -> str:
    with pytest.raises(ModelError) as refused:
        add(file, labels, **given)
    return str(refused.value)


def noise(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, CROP, CROP, 3), dtype=np.uint8)


def test_a_program_gives_the_logits_of_its_network(tmp_path: Path, labels: Path) -> None:
    bundle = read_bundle(add(save(tmp_path / "pets.pt2", network()), labels))

    runtime = open_runtime(bundle, load_settings(home=tmp_path, device="cpu"))
    assert isinstance(runtime, TorchRuntime)
    assert (bundle.spec.form, bundle.spec.trusted, bundle.spec.name) == ("torch.export", True, "pets")
    assert bundle.spec.files["network.pt2"] == digest(tmp_path / "pets.pt2")
    with torch.inference_mode():
        for count in (1, 5):
            expected = Classifier(network(), HALF, HALF, torch.float32)(torch.from_numpy(noise(count))).numpy()
            np.testing.assert_allclose(runtime.predict(noise(count)), expected, atol=1e-5)


@pytest.mark.parametrize("given", [{"trusted": False}, {"sha256": None}])
def test_a_file_is_opened_on_ones_word_only(given: dict[str, Any], tmp_path: Path, labels: Path) -> None:
    file = save(tmp_path / "pets.pt2", network())

    message = refusal(file, labels, **given)
    assert "may execute code when it is opened" in message
    assert "sha256sum pets.pt2" in message
    assert digest(file) not in message, "whoever made the file says it, not the file"


class Bomb:
    """What a pickle can do to whoever loads it."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


def poisoned(file: Path, touched: Path) -> Path:
    """A program whose constants are a pickle, as a file of torch.export may have them."""
    content = io.BytesIO()
    torch.save({"weight": Bomb(touched)}, content)
    with zipfile.ZipFile(file) as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    for name in list(entries):
        if name.endswith("_config.json"):
            config = json.loads(entries[name])["config"]
            for entry in config.values():
                entry["use_pickle"] = True
                inside = name.replace(name.rpartition("/")[2], entry["path_name"])
                entries[inside] = content.getvalue()
            entries[name] = json.dumps({"config": config}).encode()
    out = file.with_name("poisoned.pt2")
    with zipfile.ZipFile(out, "w") as changed:
        for name, data in entries.items():
            changed.writestr(name, data)
    return out


def test_a_poisoned_file_is_not_opened_before_its_digest_is_right(tmp_path: Path, labels: Path) -> None:
    touched = tmp_path / "touched"
    good = save(tmp_path / "pets.pt2", network())
    bad = poisoned(good, touched)
    raw = tmp_path / "raw.pt2"
    raw.write_bytes(pickle.dumps(Bomb(touched)))

    for file in (bad, raw):
        assert "was expected. It was not opened" in refusal(file, labels, sha256=digest(good))
        assert "may execute code" in refusal(file, labels, trusted=False)
        assert not touched.exists()
    assert "is no file of torch.export.save" in refusal(bad, labels)
    assert touched.exists(), "this goes off where somebody vouches for it"


def test_a_file_that_is_no_program_is_refused(tmp_path: Path, labels: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"hello")

    assert "is no file of torch.export.save" in refusal(tmp_path / "x.pt2", labels)
    with pytest.raises(ModelError, match=r"nowhere.pt2 does not exist"):
        from_exported(tmp_path, tmp_path / "nowhere.pt2", labels=labels, trusted=True, sha256="0" * 64)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_program_for_one_batch_size_says_how_to_export_it(batch: int, tmp_path: Path, labels: Path) -> None:
    file = save(tmp_path / "pets.pt2", network(), batch, dynamic=False)

    assert "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" in refusal(file, labels)


class Ending(nn.Module):
    """The network, and one more step."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.network, self.step = network(), step

    def forward(self, images: torch.Tensor) -> Any:
        return self.step(self.network(images))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda logits: logits.softmax(1), "gives probabilities: each row adds up to 1"),
        (lambda logits: logits.argmax(1), "[1] for 1 images, and expected are float logits [1, 4]"),
        (lambda logits: logits[:, :, None], "[1, 4, 1] for 1 images"),
        (lambda logits: logits[:, :3], "3 outputs, and"),
        (lambda logits: logits / 0, "not finite"),
        (lambda logits: logits - logits.mean(0), "in another batch"),
        (lambda logits: (logits, logits), "does not run on a batch of 1"),
    ],
)
def test_a_program_whose_answers_are_no_logits_is_refused(step: Any, says: str, tmp_path: Path, labels: Path) -> None:
    assert says in refusal(save(tmp_path / "pets.pt2", Ending(step)), labels)
