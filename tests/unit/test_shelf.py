"""Bundles that are kept by name: they come in whole, pinned and tried, and what was changed since is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tasks.cli import app
from tasks.cli.model_keeping import uri_of
from tasks.errors import ConfigurationError, ModelError
from tasks.models import shelf
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.fingerprint import file_digest
from tasks.models.resolving import resolve_model
from tasks.settings import Settings, load_settings
from tasks.uris import absolute_uri
from tests.pictures import write_small_bundle


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AFTERIMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AFTERIMAGE_DEVICE", "cpu")
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(tmp_path / "pipelines.toml"))
    return load_settings()


@pytest.fixture
def source(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "source"))


def called(bundle: Bundle, name: str, version: str = "1") -> Bundle:
    return replace(bundle, spec=replace(bundle.spec, name=name, version=version))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as refused:
        call()
    return str(refused.value)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    return done.exit_code, done.stdout


# Coming in


def test_a_bundle_that_was_added_is_found_by_its_name(source: Bundle, settings: Settings) -> None:
    kept = shelf.add(called(source, "shapes", "3"), settings)

    found = resolve_model("bundle:shapes", settings)
    assert found.model_id == source.model_id == kept.model_id
    assert (found.spec.name, found.spec.version) == ("shapes", "3")
    assert found.folder == settings.models / "shapes"
    assert set(found.spec.files) == {"weights.safetensors", "labels.txt"}
    assert shelf.names(settings) == ["shapes"]
    assert [path.name for path in settings.models.iterdir()] == ["shapes"], "no scratch folder stays"


def test_adding_the_same_again_changes_nothing(source: Bundle, settings: Settings) -> None:
    first = shelf.add(source, settings)
    before = (first.folder / "model.toml").stat().st_mtime_ns

    assert shelf.add(source, settings).model_id == first.model_id
    assert (first.folder / "model.toml").stat().st_mtime_ns == before


def test_another_model_under_a_name_that_is_taken_is_refused(
    source: Bundle, settings: Settings, tmp_path: Path
) -> None:
    shelf.add(source, settings)
    other = read_bundle(write_small_bundle(tmp_path / "other", seed=1))

    assert "is there already, and holds another model" in refusal(lambda: shelf.add(other, settings))
    assert shelf.find("small", settings).model_id == source.model_id


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a b", "x" * 101])
def test_what_is_no_name_is_refused(source: Bundle, settings: Settings, name: str) -> None:
    if name:
        assert "is no name for a model" in refusal(lambda: shelf.add(called(source, name), settings))
    assert "There is no model" in refusal(lambda: shelf.find(name, settings))
    assert "There is no model" in refusal(lambda: shelf.remove(name, settings))


def test_an_unknown_name_comes_with_those_that_there_are(source: Bundle, settings: Settings) -> None:
    shelf.add(source, settings)

    assert "There is no model 'smal'" in refusal(lambda: resolve_model("bundle:smal", settings))
    assert "There is: small." in refusal(lambda: resolve_model("bundle:smal", settings))


def break_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "weights.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def put_nan(state: dict[str, torch.Tensor]) -> None:
    state["classifier.bias"][2] = float("nan")


def drop_key(state: dict[str, torch.Tensor]) -> None:
    del state["classifier.bias"]


def put_too_large(state: dict[str, torch.Tensor]) -> None:
    """Finite weights whose output overflows."""
    state["classifier.weight"].fill_(3e38)
    state["features.3.weight"].fill_(3e38)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put_nan, "weights.safetensors has numbers that are not finite (NaN or infinite) in classifier.bias"),
        (drop_key, "weights.safetensors does not fit small_cnn with 4 labels: it lacks classifier.bias"),
        (put_too_large, "weights.safetensors gives an output that is not finite"),
    ],
)
def test_weights_that_are_of_no_use_are_not_kept(
    source: Bundle, settings: Settings, change: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    break_weights(source.folder, change)

    assert says in refusal(lambda: shelf.add(read_bundle(source.folder), settings))
    assert shelf.names(settings) == []
    assert list(settings.models.iterdir()) == []


def test_a_wrong_number_of_labels_is_not_kept(source: Bundle, settings: Settings) -> None:
    (source.folder / "labels.txt").write_text("one\ntwo\n")

    message = refusal(lambda: shelf.add(read_bundle(source.folder), settings))
    assert "does not fit small_cnn with 2 labels" in message
    assert "classifier.weight is [4, 128] and should be [2, 128]" in message


# Staying what it was


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights.safetensors", "labels.txt"])
def test_an_edited_byte_is_refused_and_named(source: Bundle, settings: Settings, name: str) -> None:
    kept = shelf.add(source, settings)
    flip_a_byte(kept.folder / name)

    message = refusal(lambda: resolve_model("bundle:small", settings).model_id)
    assert message.startswith(f"{kept.folder / name} has the sha256 ")
    assert "it was changed since the bundle was made. Bring the file back" in message
    assert run("verify", "small")[0] == 1


def test_swapped_labels_are_refused(source: Bundle, settings: Settings) -> None:
    kept = shelf.add(source, settings)
    path = kept.folder / "labels.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")

    assert f"{path} has the sha256" in refusal(lambda: resolve_model("bundle:small", settings))


# The command line


def test_the_list_shows_what_is_kept_and_what_is_broken(source: Bundle, settings: Settings) -> None:
    assert "No model yet" in run("list")[1]
    shelf.add(called(source, "good"), settings)
    flip_a_byte(shelf.add(called(source, "bad"), settings).folder / "labels.txt")

    bad, good = json.loads(run("list", "--json")[1])
    assert (good["name"], good["precision"], good["labels"]) == ("good", "fp32", 4)
    assert good["model_id"] == source.model_id
    assert "labels.txt has the sha256" in bad["problem"]
    assert "good" in run("list")[1]


def test_show_tells_all_that_a_bundle_says(source: Bundle, settings: Settings) -> None:
    shelf.add(source, settings)

    found = json.loads(run("show", "small", "--json")[1])
    assert found["model_id"] == source.model_id
    assert found["preprocessing"]["crop"] == 16
    assert found["files"].keys() == {"weights.safetensors", "labels.txt"}
    assert found["runtimes on cpu"].split(", ")[0] == "openvino"
    assert "preprocessing.crop" in run("show", "small")[1]


def test_verify_loads_and_predicts_and_ends_with_1_where_something_is_wrong(
    source: Bundle, settings: Settings, tmp_path: Path
) -> None:
    shelf.add(source, settings)
    assert run("verify")[0] == 0
    assert "it loads and predicts" in run("verify", "small")[1]
    assert "model.toml pins no file" in run("verify", str(source.folder))[1]

    code, shown = run("verify", "small", str(tmp_path / "nowhere"), "--json")
    assert code == 1
    assert [row["ok"] for row in json.loads(shown)] == [True, False]


def test_remove_takes_a_model_away_unless_a_pipeline_uses_it(source: Bundle, settings: Settings) -> None:
    shelf.add(source, settings)
    settings.pipelines.write_text('[shapes]\nimages = "photos"\nmodel = "bundle:small"\n')

    with pytest.raises(ModelError, match="small is the model of shapes in"):
        run("remove", "small")
    assert shelf.names(settings) == ["small"]
    assert run("remove", "small", "--force")[0] == 0
    assert list(settings.models.iterdir()) == []


def test_a_name_is_never_mistaken_for_a_folder(
    source: Bundle, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipeline a plain word is a folder, there or not; `models` commands know the names that are kept."""
    monkeypatch.chdir(tmp_path)
    shelf.add(source, settings)

    assert absolute_uri("small", tmp_path) == str(tmp_path / "small")
    assert absolute_uri("bundle:small", tmp_path) == "bundle:small"
    assert uri_of("small", settings) == "bundle:small"
    assert uri_of("./small", settings) == uri_of("other/../small", settings) == str(tmp_path / "small")


def test_what_was_closed_predicts_no_more(source: Bundle, settings: Settings) -> None:
    from tasks.models.runtimes import open_runtime

    for runtime in ("openvino", "torch"):
        opened = open_runtime(source, settings.model_copy(update={"runtime": runtime}))
        pixels = np.zeros((1, 16, 16, 3), np.uint8)
        assert opened.predict(pixels).shape == (1, 4)
        opened.close()
        opened.close()
        with pytest.raises(Exception, match="closed"):
            opened.predict(pixels)
    shutil.rmtree(source.folder)


def test_add_makes_a_bundle_of_a_torchvision_network(settings: Settings, tmp_path: Path) -> None:
    uri = "torchvision:mobilenet_v3_small?weights=random&seed=0"
    options = ["--name", "tiny", "--version", "7", "--resize", "64", "--crop", "64", "--top-k", "3"]
    found = json.loads(run("add", uri, *options, "--json")[1])

    kept = resolve_model("bundle:tiny", settings)
    assert found["model_id"] == kept.model_id
    assert (kept.spec.version, kept.spec.preprocessing.crop, kept.spec.top_k) == ("7", 64, 3)
    assert kept.spec.preprocessing.mean == (0.485, 0.456, 0.406)
    weights = kept.folder / "weights.safetensors"
    same = ["--weights", str(weights), "--name", "again", "--resize", "64", "--crop", "64", "--top-k", "3"]
    assert json.loads(run("add", "torchvision:mobilenet_v3_small", *same, "--json")[1])["model_id"] == kept.model_id


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--crop", "99"], "crop 99 is larger than resize 16"),
        (["--mean", "0.5"], "--mean is '0.5'. Give three numbers"),
        (["--std", "0,1,1"], "every std must be above 0"),
        (["--interpolation", "nearest"], "Input should be 'bilinear' or 'bicubic'"),
        (["--decode", "quick"], "preprocessing.decode = 'quick'"),
        (["--labels", "labels.txt"], "--weights and --labels belong to torchvision:, timm: and to files"),
        (["--name", "../up"], "is no name for a model"),
    ],
)
def test_options_that_make_no_bundle_are_refused(
    source: Bundle, settings: Settings, options: list[str], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        run("add", str(source.folder), *options)
    assert not settings.models.exists() or list(settings.models.iterdir()) == []


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.mean((2, 3)))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("a\nb\nc\nd\n")
    return path


def test_add_takes_a_file_of_onnx(settings: Settings, tmp_path: Path, labels: Path) -> None:
    file = tmp_path / "tiny.onnx"
    torch.onnx.export(Tiny().eval(), (torch.rand(2, 3, 16, 16),), file, external_data=False, verbose=False)
    size = ["--resize", "16", "--crop", "16", "--mean", "0.5,0.5,0.5"]

    with pytest.raises(ConfigurationError, match="does not say what its outputs are called"):
        run("add", str(file))
    found = json.loads(run("add", str(file), "--labels", str(labels), *size, "--json")[1])
    kept = resolve_model("bundle:tiny", settings)
    assert (kept.model_id, kept.labels, kept.spec.form) == (found["model_id"], ("a", "b", "c", "d"), "onnx")
    assert kept.spec.preprocessing.mean == (0.5, 0.5, 0.5)
    assert run("verify", "tiny")[0] == 0


def test_add_takes_a_file_of_torch_export_on_ones_word_only(settings: Settings, tmp_path: Path, labels: Path) -> None:
    file = tmp_path / "tiny.pt2"
    shape = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(Tiny().eval(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=shape), file)
    command = ["add", str(file), "--labels", str(labels), "--resize", "16", "--crop", "16"]
    digest = file_digest(file)

    for word in ([], ["--trusted"], ["--sha256", digest], ["--trusted", "--sha256", "0" * 64]):
        with pytest.raises(ModelError, match=r"may execute code when it is opened|has the sha256"):
            run(*command, *word)
    assert run(*command, "--trusted", "--sha256", digest)[0] == 0
    kept = resolve_model("bundle:tiny", settings)
    assert kept.spec.trusted
    assert kept.spec.files["network.pt2"] == digest
    flip_a_byte(kept.folder / "network.pt2")
    assert "network.pt2 has the sha256" in refusal(lambda: resolve_model("bundle:tiny", settings).model_id)
