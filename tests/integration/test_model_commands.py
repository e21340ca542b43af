"""Several models side by side, and the commands that make and compare them, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from tasks.errors import ConfigurationError
from tasks.inference.decoding.policies import decode
from tasks.inference.scoring import softmax
from tasks.models.bundle import read_bundle, write_bundle
from tasks.models.runtimes import open_runtime
from tasks.optimisation import measuring
from tasks.optimisation.choosing import choose_judging
from tasks.optimisation.comparing import compare
from tasks.optimisation.measuring import measure_in_turn
from tasks.settings import Settings, load_settings
from tests.conftest import outer_environment
from tests.pictures import picture, write_pictures, write_small_bundle

ROUND = 0.02  # seconds: nothing is asserted about speed


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


# Comparing and measuring


def test_bundles_of_other_preprocessing_are_compared_on_the_images_that_all_can_read(
    tmp_path: Path, images: Path, settings: Settings
) -> None:
    bundles = [read_bundle(write_small_bundle(tmp_path / f"crop{crop}", crop=crop)) for crop in (16, 24, 16)]
    (images / "00003.png").write_bytes(picture(3)[:200])
    # A line whose shorter side can be resized to 16 pixels, and at 24 has too many of them.
    Image.new("L", (200_000, 1)).save(images / "00004.png")

    found = compare(bundles, choose_judging(str(images), settings), settings)

    assert (len(found.keys), found.left_out) == (22, 2)
    assert not {"00003.png", "00004.png"} & set(found.keys)
    first, other, again = found.answers
    assert np.array_equal(first.labels, again.labels)
    assert np.allclose(first.scores, again.scores)
    assert not np.allclose(first.scores, other.scores)
    runtime = open_runtime(bundles[1], settings)
    for row, key in enumerate(found.keys):
        logits = runtime.predict(decode((images / key).read_bytes(), bundles[1].spec.preprocessing)[None])
        assert other.best[row] == logits[0].argmax()
        assert other.scores[row, 0] == pytest.approx(softmax(logits)[0].max(), abs=1e-5)
    runtime.close()


def test_a_sample_of_which_nothing_can_be_read_is_refused(bundle: Path, tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")

    with pytest.raises(ConfigurationError, match=r"None of the 1 images under .* could be read"):
        compare([read_bundle(bundle)], choose_judging(str(tmp_path / "broken"), settings), settings)


def test_each_model_is_measured_in_a_process_of_its_own(bundle: Path, settings: Settings) -> None:
    found = read_bundle(bundle)
    compare_once = open_runtime(found, settings)  # converts it
    compare_once.close()

    speeds = measure_in_turn([found, found], settings, rounds=3, seconds=ROUND)

    assert [(speed.device, speed.runtime, len(speed.rates)) for speed in speeds] == [("cpu", "openvino", 3)] * 2
    for speed in speeds:
        assert min(speed.rates) > 0
        assert speed.peak_bytes is not None
        assert 20e6 < speed.peak_bytes < 1e9, "OpenVINO and NumPy, and nothing of this process"


def test_a_process_that_cannot_load_its_model_says_why(bundle: Path, settings: Settings) -> None:
    found = read_bundle(bundle)
    found.weights.write_bytes(b"nothing")

    with pytest.raises(ConfigurationError, match="is no safetensors file"):
        measure_in_turn([found], settings, rounds=1, seconds=ROUND)


def test_a_process_that_dies_is_no_riddle(bundle: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.sys, "executable", "/bin/false")

    with pytest.raises(ConfigurationError, match=r"that measures .*small ended with 1"):
        measure_in_turn([read_bundle(bundle)], settings, rounds=1, seconds=ROUND)


# The command line


def cli(home: Path, folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = outer_environment(AFTERIMAGE_HOME=str(home), HOME=str(folder))
    environment.pop("CI", None)
    command = [sys.executable, "-m", "tasks", "models", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (folder / "intel").exists(), "NNCF and OpenVINO report to nobody"
    return done


def test_optimise_and_bench_print_one_json_value(bundle: Path, images: Path, home: Path, tmp_path: Path) -> None:
    common = ("--judge", "images", "--rounds", "1", "--json")
    asked = (
        "optimise",
        "small",
        "--precision",
        "int8",
        "--calibrate",
        "images",
        "--min-agreement",
        "0.5",
        "--to",
        "new",
    )
    told = json.loads(cli(home, tmp_path, *asked, *common).stdout)
    assert told["folder"] == str(tmp_path / "new")
    assert told["provenance"]["calibrated_on"] == str(images)

    labels = "".join(f"{number:05d}.png,red\n" for number in range(20))
    (tmp_path / "truth.csv").write_text(f"key,label\n{labels}")
    asked = (
        "bench",
        "small",
        "new",
        "--labels",
        "truth.csv",
        "--rounds",
        "1",
        "--cost-per-hour",
        "2",
    )
    found = json.loads(cli(home, tmp_path, *asked, "--plot", "plot.png", *common).stdout)
    assert found["measure"] == "accuracy"
    assert [(row["name"], row["images"]) for row in found["models"]] == [("small", 20), ("small-int8", 20)]
    assert all(row["dollars_per_million"] > 0 for row in found["models"])
    assert any(row["on_frontier"] for row in found["models"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bench_without_labels_and_without_a_cost(bundle: Path, images: Path, home: Path, tmp_path: Path) -> None:
    shown = cli(home, tmp_path, "bench", "small", "small", "--judge", "images", "--rounds", "1").stdout

    assert shown.count("100.00% (24 of 24)") == 2
    assert "agreement" in shown
    assert "give --cost-per-hour, or set AFTERIMAGE_COST_PER_HOUR" in shown


def test_bench_refuses_models_of_other_labels(bundle: Path, images: Path, home: Path, tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "other", labels=("a", "b", "c"))

    done = cli(home, tmp_path, "bench", "small", "other", "--judge", "images", code=2)
    assert "does not have the labels of" in done.stderr


def test_a_missed_gate_exits_with_1_and_says_what_to_try(
    bundle: Path, images: Path, home: Path, tmp_path: Path
) -> None:
    found = read_bundle(bundle)
    weights = load_file(found.weights)
    # Four rows that bf16 cannot tell apart; fp32 sees blue everywhere.
    rows = weights["classifier.weight"][:1].abs() * (1 + 1e-4 * torch.arange(4)[:, None])
    weights.update({"classifier.weight": rows, "classifier.bias": torch.zeros(4)})
    write_bundle(bundle, found.spec, found.labels, save(weights))

    asked = ("optimise", "small", "--precision", "bf16", "--judge", "images", "--name", "missed", "--rounds", "1")
    done = cli(home, tmp_path, *asked, code=1)

    assert (
        "It missed the gate and was not kept: it agrees with the original on 0 of 24 images, 0.00%, and 98.00%"
        in done.stdout
    )
    assert "Try --precision fp16, or a looser gate." in done.stdout
    assert not (home / "models" / "missed").exists()
    assert "| blue | 24 | 0 |" in (home / "reports" / "missed" / "report.md").read_text()
