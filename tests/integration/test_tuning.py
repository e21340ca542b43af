"""`models tune-cascade` as a user runs it, and a cascade of an int8 and an fp32 SqueezeNet over real photographs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.models.bundle import read_bundle, write_bundle
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import open_runtime
from tasks.models.runtimes.unreported import ov, unreported
from tasks.optimisation.sample import list_sample, read_crops
from tasks.optimisation.tuning import is_held_out
from tasks.settings import load_settings
from tests.conftest import TEST_DATA, outer_environment
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner, outcomes


def tune(home: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "models", "tune-cascade", *arguments],
        env=outer_environment(AFTERIMAGE_HOME=str(home)),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two models and 120 images; the small one answers blue or green, the large one always blue."""
    write_pictures(tmp_path / "images", 120)
    write_small_bundle(tmp_path / "small", seed=7)
    write_small_bundle(tmp_path / "large", crop=24, name="large")
    return tmp_path


def options(place: Path) -> list[str]:
    return [str(place / "small"), str(place / "large"), "--judge", str(place / "images")]


def test_what_it_promises_is_what_a_run_gives(home: Path, place: Path) -> None:
    """The lines that it prints, put into pipelines.toml, give the agreement and the share that it told."""
    told = json.loads(tune(home, *options(place), "--min-agreement", "0.9", "--holdout", "0", "--json").stdout)
    assert (told["held_out"], told["reached"], told["resolution"]) == (False, True, 1 / 120)
    assert told["tuned_on"] == told["reported_on"]
    table = tomllib.loads(told["toml"])
    images = str(place / "images")
    url = f"sqlite:///{place}/cache.db"
    alone = Runner(home, url, images=images, model=table["model"][1])
    alone.run()
    large = {row["key"]: row["label"] for row in alone.rows("SELECT * FROM v_prediction")}
    cascade = Runner(home, url, images=images, model=table["model"], cascade_margin=table["cascade_margin"])
    counts = cascade.run()
    rows = cascade.rows("SELECT * FROM v_prediction WHERE cascade_stage IS NOT NULL")
    agreeing = sum(row["label"] == large[row["key"]] for row in rows)
    assert agreeing / 120 == pytest.approx(told["reported_on"]["agreement"])
    assert counts["stages"]["forward_2"]["items"] / 120 == pytest.approx(told["reported_on"]["share_that_goes_on"])
    assert agreeing / 120 >= 0.9
    assert table["cascade_margin"] == told["margin"]
    shown = {row["margin"]: row for row in told["table"]}
    assert shown[0.0]["agreement"] < 0.9
    assert shown[1.0]["agreement"] == 1.0


def test_the_images_that_report_are_not_those_that_choose(home: Path, place: Path) -> None:
    told = json.loads(tune(home, *options(place), "--min-agreement", "0.5", "--json").stdout)
    held = sum(is_held_out(f"{number:05d}.png", 0.5) for number in range(120))
    assert (told["tuned_on"]["images"], told["reported_on"]["images"]) == (120 - held, held)
    assert told["held_out"]


def test_a_person_gets_a_table_the_doubts_and_the_lines_to_paste(home: Path, place: Path) -> None:
    labels = place / "labels.csv"
    labels.write_text("key,label\n" + "".join(f"{number:05d}.png,{number % 4}\n" for number in range(120)))
    done = tune(home, *options(place), "--min-agreement", "0.9", "--holdout", "0", "--labels", str(labels))
    assert "<- chosen" in done.stdout
    assert "of which one is 0.83%" in done.stdout
    assert "The table is of the same images" in done.stdout
    assert "Accuracy alone, on 120 images with labels: small " in done.stdout
    assert "cascade_margin = " in done.stdout


def test_a_small_model_that_is_enough_is_no_cascade(home: Path, place: Path) -> None:
    small = str(place / "small")
    done = tune(home, small, small, "--judge", str(place / "images"))
    assert f'model = "{small}"  # it agrees often enough alone' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "large", "large", "--judge", "images"], "Tune a longer cascade two at a time"),
        (["small", "other", "--judge", "images"], "output 0 is 'dark' in small"),
        (["small", "large", "--judge", "nowhere"], "nowhere"),
        (["small", "large", "--judge", "images", "--judge-images", "1"], "or --holdout 0"),
    ],
)
def test_what_cannot_be_tuned_says_why(place: Path, home: Path, arguments: list[str], message: str) -> None:
    write_small_bundle(place / "other", labels=("a", "b", "c", "d"), name="other")
    paths = [str(place / part) if not part.startswith("-") and not part.isdigit() else part for part in arguments]
    done = tune(home, *paths, code=2)
    assert message in " ".join(done.stderr.replace("│", " ").split())


def write_int8(folder: Path, uri: str, photographs: Path, home: Path) -> Path:
    """An int8 bundle of a network, calibrated with some of the photographs by NNCF's defaults."""
    settings = load_settings(home=home, device="cpu")
    original = resolve_model(uri, settings)
    open_runtime(original, settings).close()  # It keeps the network that it converted.
    converted = next(settings.compiled.glob(f"{original.model_id}-openvino-*/model.xml"))
    images = list_sample(str(photographs), settings)[::6]
    groups = read_crops(str(photographs), images, original.spec.preprocessing, settings)
    crops = [crop[None] for group in groups for crop in group.pixels]
    with unreported():
        import nncf

        network = nncf.quantize(ov.Core().read_model(converted), nncf.Dataset(crops), subset_size=len(crops))
        folder.mkdir()
        ov.save_model(network, folder / "network.xml", compress_to_fp16=False)
    spec = replace(
        original.spec,
        name="squeezenet-int8",
        architecture="openvino",
        network="network.xml",
        weights="network.bin",
        precision="int8",
        options={},
    )
    write_bundle(folder, spec, original.labels)
    return folder


@pytest.mark.photographs
def test_int8_first_and_fp32_for_what_it_is_unsure_of(
    home: Path, tmp_path: Path, photographs: Path, squeezenet: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed: make extra-nncf")
    small = write_int8(tmp_path / "int8", squeezenet, photographs, home)
    labels = TEST_DATA / "imagenet-sample" / "labels.csv"
    arguments = [
        str(small),
        squeezenet,
        "--judge",
        str(photographs),
        "--labels",
        str(labels),
        "--holdout",
        "0",
        "--json",
    ]
    told = json.loads(tune(home, *arguments).stdout)
    table = tomllib.loads(told["toml"])
    url = f"sqlite:///{tmp_path}/cache.db"
    fp32 = Runner(home, url, images=str(photographs), model=squeezenet)
    fp32.run()
    expected = {row["key"]: row["label"] for row in fp32.rows("SELECT * FROM v_prediction")}
    cascade = Runner(
        home, url, images=str(photographs), model=(str(small), squeezenet), cascade_margin=table["cascade_margin"]
    )
    counts = cascade.run()
    assert outcomes(counts) == {"predicted": 200}
    rows: list[dict[str, Any]] = cascade.rows("SELECT * FROM v_prediction WHERE cascade_stage IS NOT NULL")
    agreement = np.mean([row["label"] == expected[row["key"]] for row in rows])
    went_on = counts["stages"]["forward_2"]["items"]
    assert agreement >= 0.98
    assert 0 < went_on < 150
    assert sum(row["answered_by"] == "squeezenet1_0" for row in rows) == went_on
    assert {row["answered_by"] for row in rows} == {"squeezenet-int8", "squeezenet1_0"}
    assert told["reported_on"]["share_that_goes_on"] == pytest.approx(went_on / 200)
    assert read_bundle(small).spec.precision == "int8"
    with capsys.disabled():
        print(f"\nmargin {told['margin']}, agreement {agreement:.2%}, {went_on / 200:.1%} went on")
