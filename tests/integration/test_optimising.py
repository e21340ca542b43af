"""Smaller models from start to end: real NNCF, the gate both ways, every refusal, and real weights on real photographs."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tasks import extras
from tasks.errors import ConfigurationError, ModelError
from tasks.models.bundle import read_bundle, write_bundle
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import open_runtime
from tasks.optimisation.choosing import choose_judging, choose_samples
from tasks.optimisation.comparing import compare
from tasks.optimisation.figures import Gate
from tasks.optimisation.optimising import Request, optimise
from tasks.optimisation.producing import Facts, Order, Produced, produce
from tasks.settings import Settings, load_settings
from tests.pictures import LABELS, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 24)
    return tmp_path / "images"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "small")


def request(bundle: Path, images: Path, precision: str = "int8", **changes: Any) -> Request:
    calibrate = str(images) if precision == "int8" else None
    asked = Request(str(bundle), precision, judge=str(images), calibrate=calibrate, min_agreement=0.5, rounds=1)
    return replace(asked, **changes)


def write_labels(path: Path, labels: dict[str, str]) -> Path:
    path.write_text("key,label\n" + "".join(f"{key},{label}\n" for key, label in labels.items()))
    return path


def seen(bundle: Path, images: Path, settings: Settings) -> dict[str, str]:
    """What a bundle says of each image."""
    found = compare([read_bundle(bundle)], choose_judging(str(images), settings), settings)
    return {key: LABELS[best] for key, best in zip(found.keys, found.answers[0].best.tolist(), strict=True)}


# int8


def test_int8_is_a_bundle_like_any_other_with_a_report(bundle: Path, images: Path, settings: Settings) -> None:
    (images / "00020.png").write_bytes(b"no image")

    produced = optimise(request(bundle, images), settings)

    assert produced.misses == ()
    made, old = read_bundle(settings.models / "small-int8"), read_bundle(bundle)
    assert made.spec.precision == "int8"
    assert (made.spec.architecture, made.spec.network, made.spec.weights) == ("openvino", "network.xml", "network.bin")
    assert (made.labels, made.spec.preprocessing, made.spec.top_k) == (
        old.labels,
        old.spec.preprocessing,
        old.spec.top_k,
    )
    assert made.model_id != old.model_id
    assert b'"i8"' in made.network.read_bytes()
    assert {path.name for path in made.folder.iterdir()} == {"model.toml", "labels.txt", "network.xml", "network.bin"}
    assert made.spec.provenance["made_from"] == old.model_id
    assert made.spec.provenance["calibrated_on"] == str(images)
    assert made.spec.provenance["calibration_images"] == 12
    assert {"nncf", "openvino", "method"} <= set(made.spec.provenance)

    told = json.loads((settings.home / "reports" / "small-int8" / "report.json").read_text())
    assert told == json.loads(json.dumps(produced.content))
    assert told["judged"] == {"uri": str(images), "images": 12, "left_out": 1}
    assert told["agreement"]["images"] == 11
    assert len(told["disagreements"]) == 11 - told["agreement"]["count"]
    assert [told[which]["runtime"] for which in ("original", "new")] == ["openvino", "openvino"]
    assert told["new"]["size_bytes"] == sum(path.stat().st_size for path in made.folder.iterdir())
    assert {path.name for path in produced.report.iterdir()} == {"report.json", "report.md", "report.png"}
    assert [path.name for path in settings.models.iterdir()] == ["small-int8"], "no scratch folder is left"


def test_int8_for_tensorrt_is_a_graph_of_onnx(bundle: Path, images: Path, settings: Settings) -> None:
    produced = optimise(request(bundle, images, runtime="tensorrt"), settings)

    assert produced.folder == settings.models / "small-int8-tensorrt"
    made = read_bundle(produced.folder)
    assert (made.spec.form, made.spec.precision, made.spec.name) == ("onnx", "int8", "small-int8-tensorrt")
    assert made.spec.provenance["calibrated_on"] == str(images)
    assert produced.content["making"]["quantisers"] > 0


def test_an_edited_byte_in_the_network_is_refused(bundle: Path, images: Path, settings: Settings) -> None:
    made = optimise(request(bundle, images), settings).folder
    assert made is not None
    network = bytearray((made / "network.bin").read_bytes())
    network[-1] ^= 1
    (made / "network.bin").write_bytes(network)

    with pytest.raises(ModelError, match=r"network\.bin has the sha256"):
        open_runtime(read_bundle(made), settings)


@pytest.mark.parametrize("has_labels", [True, False])
def test_accuracy_aware_says_by_what_it_chose(
    bundle: Path, images: Path, settings: Settings, tmp_path: Path, has_labels: bool
) -> None:
    asked = request(bundle, images, is_accuracy_aware=True)
    if has_labels:
        asked = replace(asked, labels=write_labels(tmp_path / "truth.csv", seen(bundle, images, settings)))

    made = optimise(replace(asked, max_accuracy_drop=1.0 if has_labels else None), settings)

    assert made.folder is not None
    assert read_bundle(made.folder).spec.provenance["method"] == "nncf.quantize_with_accuracy_control, preset mixed"
    what = "accuracy on 12 of the calibration images, at most 1.0000" if has_labels else "agreement on 12 of the"
    assert str(made.content["making"]["validated by"]).startswith(what)


def test_without_nncf_the_message_says_what_to_install(
    bundle: Path, images: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"Quantisation to int8 needs the package nncf.*make extra-nncf"):
        optimise(request(bundle, images), settings)
    assert list(settings.models.iterdir()) == []


# bf16 and fp16


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_halves_are_the_same_network_in_two_bytes(
    bundle: Path, images: Path, settings: Settings, precision: str, dtype: torch.dtype
) -> None:
    produced = optimise(request(bundle, images, precision), settings)

    assert produced.folder == settings.models / f"small-{precision}"
    made = read_bundle(produced.folder)
    assert (made.spec.architecture, made.spec.precision) == ("small_cnn", precision)
    assert {tensor.dtype for tensor in load_file(made.weights).values()} == {dtype}
    assert produced.content["new"]["runtime"] == "torch"


def test_weights_beyond_the_range_of_fp16_are_refused(bundle: Path, images: Path, settings: Settings) -> None:
    found = read_bundle(bundle)
    weights = load_file(found.weights)
    weights["classifier.weight"][0, 0] = 1e6
    write_bundle(bundle, found.spec, found.labels, save(weights))

    with pytest.raises(ModelError, match=r"classifier\.weight has numbers beyond the range of fp16"):
        optimise(request(bundle, images, "fp16"), settings)


# The gate


def spoilt(bundle: Path, tmp_path: Path) -> Path:
    """The same network with its outputs in another order: it is wrong about nearly everything."""
    found = read_bundle(bundle)
    weights = {
        name: tensor.roll(1, 0) if "classifier" in name else tensor for name, tensor in load_file(found.weights).items()
    }
    (tmp_path / "spoilt").mkdir()
    write_bundle(tmp_path / "spoilt", replace(found.spec, name="spoilt"), found.labels, save(weights))
    return tmp_path / "spoilt"


def judged(bundle: Path, new: Path, images: Path, settings: Settings, gate: Gate, truth: dict[str, int]) -> Produced:
    def make(folder: Path) -> Facts:
        shutil.copytree(new, folder, dirs_exist_ok=True)
        return {"agreement before recovery": 0.25}

    order = Order(
        folder=settings.models / "new",
        report=settings.home / "reports" / "new",
        judged=choose_judging(str(images), settings),
        gate=gate,
        truth=truth,
        advice="more images",
        rounds=1,
    )
    return produce(read_bundle(bundle), make, order, settings)


@pytest.mark.parametrize("gate", [Gate(max_accuracy_drop=0.5), Gate(0.5, 0.5)])
def test_what_misses_the_gate_leaves_a_report_and_no_bundle(
    bundle: Path, images: Path, settings: Settings, tmp_path: Path, gate: Gate
) -> None:
    truth = {key: LABELS.index(label) for key, label in seen(bundle, images, settings).items()}

    produced = judged(bundle, spoilt(bundle, tmp_path), images, settings, gate, truth)

    assert produced.folder is None
    assert len(produced.misses) == [gate.max_accuracy_drop, gate.min_agreement].count(0.5)
    assert list(settings.models.iterdir()) == []
    assert produced.content["making"] == {"agreement before recovery": 0.25}
    text = (produced.report / "report.md").read_text()
    assert "It missed the gate and was not kept" in text
    assert "Try more images." in text
    assert "- agreement before recovery: 0.2500" in text
    assert "of 24 images" in produced.misses[0]
    assert produced.content["accuracy"]["original"]["share"] == 1.0
    assert len(produced.content["disagreements"]) == 24


def test_the_same_model_passes_every_gate(bundle: Path, images: Path, settings: Settings) -> None:
    produced = judged(bundle, bundle, images, settings, Gate(min_agreement=1.0), {})

    assert produced.folder == settings.models / "new"
    assert read_bundle(produced.folder).model_id == read_bundle(bundle).model_id
    assert produced.folder.stat().st_mode & 0o777 == 0o755
    with pytest.raises(ConfigurationError, match="new exists already"):
        judged(bundle, bundle, images, settings, Gate(min_agreement=1.0), {})


# What is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"calibrate": None}, "--precision int8 needs images to calibrate with"),
        ({"precision": "bf16", "calibrate": "images"}, "--precision bf16 needs no images to calibrate with"),
        ({"precision": "bf16", "calibrate": None, "is_accuracy_aware": True}, "bf16 has nothing that --accuracy-aware"),
        ({"precision": "int4"}, "Nothing here makes int4"),
        ({"runtime": "torch"}, "Nothing here makes int8 for torch"),
        ({"max_accuracy_drop": 0.1}, "--max-accuracy-drop needs labels"),
        ({"name": "../elsewhere"}, "is no name for a bundle"),
        ({"calibrate_images": 24}, "none is left to judge"),
        ({"judge": "nowhere"}, "nowhere does not exist"),
        ({"model": "nowhere"}, "nowhere/model.toml does not exist"),
        ({"model": "bundle:nowhere"}, "There is no model 'nowhere'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_made(
    bundle: Path, images: Path, settings: Settings, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        optimise(request(bundle, images, **changes), settings)
    assert not settings.models.exists()


def test_an_existing_folder_is_left_alone(bundle: Path, images: Path, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    with pytest.raises(ConfigurationError, match="there exists already, and a bundle is never changed"):
        optimise(request(bundle, images, to=tmp_path / "there"), settings)
    assert list((tmp_path / "there").iterdir()) == []


def test_only_fp32_is_made_smaller(bundle: Path, images: Path, settings: Settings) -> None:
    half = optimise(request(bundle, images, "bf16"), settings).folder
    assert half is not None

    with pytest.raises(ModelError, match="is bf16 in the form torch, and int8 is made from fp32"):
        optimise(request(half, images), settings)
    with pytest.raises(ModelError, match="is bf16 in the form torch, and fp16 is made from"):
        optimise(request(half, images, "fp16"), settings)


# Real weights


def _predictions(runner: Runner) -> dict[str, Any]:
    from tasks.cache.database import connect
    from tasks.cache.migrating import migrate

    runner.settings.home.mkdir(exist_ok=True)
    migrate(connect(runner.settings.database_url))
    runner.run()
    return runner.predictions()


@pytest.mark.photographs
def test_squeezenet_in_int8_is_as_right_as_in_fp32(
    photographs: Path, squeezenet: str, home: Path, tmp_path: Path
) -> None:
    settings = load_settings(home=home, device="cpu")
    taught, judged = choose_samples(str(photographs), str(photographs), settings, count=100)
    keys = [image.key for image in judged.images]
    asked = Request(
        squeezenet,
        "int8",
        judge=str(photographs),
        calibrate=str(photographs),
        calibrate_images=100,
        labels=photographs / "labels.csv",
        to=tmp_path / "int8",
        rounds=1,
    )

    produced = optimise(asked, settings)

    assert produced.folder == tmp_path / "int8"
    told, made, original = produced.content, read_bundle(produced.folder), resolve_model(squeezenet, settings)
    assert (told["judged"]["images"], told["accuracy"]["original"]["images"]) == (100, 100)
    assert told["accuracy"]["drop"] <= 0.02
    assert told["agreement"]["share"] > 0.8
    assert {row["key"] for row in told["disagreements"]} <= set(keys)
    assert not set(keys) & {image.key for image in taught.images}
    assert told["new"]["size_bytes"] < 0.4 * told["original"]["size_bytes"]
    assert made.model_id != original.model_id
    assert made.spec.provenance["calibration_images"] == 100

    some = tmp_path / "some"
    some.mkdir()
    for key in keys[:16]:
        shutil.copy(photographs / key, some / key)
    both = [Runner(home, f"sqlite:///{tmp_path / 'cache.db'}", images=str(some), model=squeezenet)]
    both.append(Runner(home, f"sqlite:///{tmp_path / 'cache.db'}", images=str(some), model=str(made.folder)))
    _predictions(both[0])
    assert outcomes(both[1].run()) == {"predicted": 16}
    assert outcomes(both[0].run()) == {"cached": 16}
    beside = both[0].rows("SELECT key, model_id, label FROM v_prediction")
    assert {row["model_id"] for row in beside} == {original.model_id, made.model_id}
    assert len(beside) == 32
    differing = {row["key"] for row in told["disagreements"]}
    for key in keys[:16]:
        assert (len({row["label"] for row in beside if row["key"] == key}) == 2) == (key in differing)
    with open(photographs / "labels.csv", newline="") as file:
        truth = {row["key"]: row["category"] for row in csv.DictReader(file)}
    assert all(row["truth"] == truth[row["key"]] for row in told["disagreements"])
