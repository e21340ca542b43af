"""Model bundles: what makes a model another model, what is refused, and that every runtime gives the same logits."""

from __future__ import annotations

import pickle
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save

from tasks.errors import ConfigurationError, ModelError
from tasks.models.architectures import build, classifiers
from tasks.models.bundle import Bundle, ModelSpec, Preprocessing, read_bundle, write_bundle
from tasks.models.loading import Classifier, load_classifier
from tasks.models.resolving import resolve_model
from tasks.models.runtimes import choose_device, open_runtime, openvino_runtime
from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime, _convert
from tasks.models.runtimes.torch_runtime import TorchRuntime, open_torch
from tasks.models.spec import Option
from tasks.settings import Settings, load_settings
from tests.conftest import ROOT, outer_environment
from tests.pictures import LABELS, write_small_bundle

MOBILENET = "torchvision:mobilenet_v3_small"
RANDOM = f"{MOBILENET}?weights=random&seed=0"

Change = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "bundle")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", device="cpu")


def edit(old: str, new: str) -> Change:
    """Replace something in model.toml."""

    def change(folder: Path) -> None:
        manifest = folder / "model.toml"
        text = manifest.read_text()
        assert old in text
        manifest.write_text(text.replace(old, new))

    return change


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as refused:
        call()
    return str(refused.value)


def python(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The fingerprint


def other_weights(folder: Path) -> None:
    write_small_bundle(folder, seed=1)


def rename_label(folder: Path) -> None:
    (folder / "labels.txt").write_text("dark\nred\ngreen\npurple\n")


def swap_labels(folder: Path) -> None:
    (folder / "labels.txt").write_text("red\ndark\ngreen\nblue\n")


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        rename_label,
        swap_labels,
        edit("resize = 16", "resize = 17"),
        edit("crop = 16", "crop = 15"),
        edit('"bilinear"', '"bicubic"'),
        edit("mean = [0.5", "mean = [0.4"),
        edit("std = [0.5", "std = [0.4"),
        edit('"fp32"', '"bf16"'),
        edit("top_k = 2", "top_k = 3"),
        edit("width = 4", "width = 8"),
        edit('"small_cnn"', '"torchvision:resnet18"'),
    ],
)
def test_whatever_changes_predictions_makes_another_model(folder: Path, change: Change) -> None:
    before = read_bundle(folder).model_id

    change(folder)

    assert read_bundle(folder).model_id != before


def rename_weights(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder / "w.safetensors")
    edit('"weights.safetensors"', '"w.safetensors"')(folder)


def add_a_note(folder: Path) -> None:
    (folder / "README.md").write_text("trained on a Monday")
    edit("[options]", "# tuned by hand\n[options]")(folder)


@pytest.mark.parametrize(
    "change",
    [edit('name = "small"', 'name = "large"'), edit('version = "1"', 'version = "2"'), rename_weights, add_a_note],
)
def test_what_predictions_do_not_depend_on_makes_no_other_model(folder: Path, change: Change) -> None:
    before = read_bundle(folder).model_id

    change(folder)

    assert read_bundle(folder).model_id == before


def test_a_folder_that_moved_is_the_same_model(folder: Path) -> None:
    before = read_bundle(folder).model_id

    assert read_bundle(folder.rename(folder.with_name("elsewhere"))).model_id == before


def test_the_fingerprint_of_a_bundle_stays_the_same_for_ever(tmp_path: Path) -> None:
    """If this turns red, every user's cache is recomputed: raise SCHEME only where that is meant."""
    spec = ModelSpec(
        name="fixed",
        architecture="small_cnn",
        preprocessing=Preprocessing(resize=20, crop=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    write_bundle(tmp_path, spec, ("cat", "döner"), b"weights")

    assert read_bundle(tmp_path).model_id == FIXED


MANIFESTS = {
    # What model.toml says besides name and architecture -> the model_id that it had when this program began.
    "": "848bb0e8347908f5868e121bf508c87d07b20e38c0c3109649d7dbf54d3a3102",
    'decode = "fast"\ninterpolation = "bicubic"\n[options]\nwidth = 4\nhalf = 0.5\nflag = true\ntext = "ü"\nwhole = 2.0': (
        "1d04fbd1e85f944b2f1512ecaf641c1f0fe7b204584febb6f0ae1c0051676b9a"
    ),
    'decode = "exact"': "848bb0e8347908f5868e121bf508c87d07b20e38c0c3109649d7dbf54d3a3102",
    "[options]\na = inf": "3a87c59e7ec7d4fe3d6ef8c5ee6d78794b403eb3fd819a3e05671f218a008fe9",
}


@pytest.mark.parametrize("rest", MANIFESTS)
def test_a_manifest_written_by_hand_keeps_its_fingerprint(rest: str, tmp_path: Path) -> None:
    """Whole numbers among the means, options of every kind, policies without their number."""
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "labels.txt").write_text("cat\ndöner\n", encoding="utf-8")
    head = 'name = "g"\narchitecture = "small_cnn"\n[preprocessing]\nresize = 20\ncrop = 16\n'
    lines = f"{head}mean = [0, 0.25, 1]\nstd = [1, 0.5, 0.25]\n{rest}\n"
    (tmp_path / "model.toml").write_text(lines, encoding="utf-8")

    assert read_bundle(tmp_path).model_id == MANIFESTS[rest]


FIXED = "b8014fb49cfcc52fcd81ca92535b8a5c84ba05216d38a54dc7b1eb35c39c934d"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    options: dict[str, Option] = {"width": 4, "half": 0.5, "flag": True, "text": 'a "quoted" \\ ü\tword'}
    preprocessing = Preprocessing(resize=20, crop=16, mean=(0, 0.25, 1), std=(1, 1, 1), interpolation="bicubic")
    spec = ModelSpec(name='odd "name"', architecture="small_cnn", preprocessing=preprocessing, options=options, top_k=7)

    write_bundle(tmp_path, spec, ("cat", "dog, wild"), b"weights")

    found = read_bundle(tmp_path)
    assert found.spec == spec
    assert found.labels == ("cat", "dog, wild")
    assert found.weights.read_bytes() == b"weights"


def test_the_model_id_of_a_bundle_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tasks.models.resolving import resolve_model; from tasks.settings import load_settings;"
        "print(resolve_model(sys.argv[1], load_settings(home=sys.argv[2])).model_id, 'torch' in sys.modules)"
    )

    assert python(code, folder, tmp_path) == f"{read_bundle(folder).model_id} False"


# What is refused


@pytest.mark.parametrize("name", ["model.toml", "weights.safetensors", "labels.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    assert f"{folder / name} does not exist" in refusal(lambda: read_bundle(folder))


def test_a_missing_folder_and_a_file_in_its_place_are_named(folder: Path) -> None:
    assert "nowhere/model.toml does not exist" in refusal(lambda: read_bundle(folder / "nowhere"))
    weights = folder / "weights.safetensors"
    assert "Point `model` at a bundle folder" in refusal(lambda: read_bundle(weights))


def test_bad_toml_is_named_with_its_line(folder: Path) -> None:
    (folder / "model.toml").write_text("name = \n")

    message = refusal(lambda: read_bundle(folder))
    assert f"{folder / 'model.toml'} is not valid TOML" in message
    assert "line 1" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edit("top_k", "topk"), "topk = 2: Extra inputs are not permitted"),
        (edit("crop = 16", "crop = 16\nzoom = 2"), "preprocessing.zoom = 2: Extra inputs"),
        (edit("resize = 16\n", ""), "preprocessing.resize"),
        (edit("crop = 16", "crop = 17"), "crop 17 is larger than resize 16"),
        (edit("crop = 16", "crop = 0"), "preprocessing.crop = 0: Input should be greater than or equal to 1"),
        (edit("std = [0.5", "std = [0.0"), "every std must be above 0"),
        (
            edit('"exact-1"', '"fast-7"'),
            "preprocessing.decode = 'fast-7': Input should be 'exact-1', 'fast-1' or 'nvjpeg-1'",
        ),
        (edit('"bilinear"', '"nearest"'), "Input should be 'bilinear' or 'bicubic'"),
        (edit('"fp32"', '"int4"'), "precision = 'int4': Input should be 'fp32', 'bf16', 'fp16' or 'int8'"),
        (edit('"fp32"', '"int8"'), "int8 needs a network that is quantised, and small_cnn is code"),
        (edit('"small_cnn"', '"openvino"'), "`network` names the .xml file of architecture"),
        (edit("top_k = 2", 'top_k = 2\nnetwork = "a.xml"'), "`network` names the .xml file of architecture"),
        (edit("top_k = 2", 'top_k = 2\nnetwork = "../a.xml"'), "network = '../a.xml'"),
        (
            edit('"small_cnn"', '"torch.export"'),
            "needs trusted = true and the sha256 of weights.safetensors under [files]",
        ),
        (edit("[options]", '[files]\n"labels.txt" = "abc"\n[options]'), "files.labels.txt = 'abc'"),
        (edit("top_k = 2", "top_k = 0"), "top_k = 0: Input should be greater than or equal to 1"),
        (edit("mean = [0.5, 0.5, 0.5]", "mean = [0.5]"), "preprocessing.mean.1"),
        (edit('"weights.safetensors"', '"../weights.safetensors"'), "weights = '../weights.safetensors'"),
    ],
)
def test_a_wrong_key_is_named_with_its_value(folder: Path, change: Change, says: str) -> None:
    change(folder)

    message = refusal(lambda: read_bundle(folder))
    assert message.startswith(f"{folder / 'model.toml'}: ")
    assert says in message


@pytest.mark.parametrize(("text", "line"), [("", 1), ("dark\n\ngreen\n", 2), ("dark\nred\n  \n", 3)])
def test_a_blank_label_is_named_with_its_line(folder: Path, text: str, line: int) -> None:
    (folder / "labels.txt").write_text(text)

    assert f"labels.txt has no label in line {line}." in refusal(lambda: read_bundle(folder))


def test_labels_that_are_not_utf8_are_refused(folder: Path) -> None:
    (folder / "labels.txt").write_bytes(b"caf\xe9\n")

    assert "labels.txt is not UTF-8" in refusal(lambda: read_bundle(folder))


@pytest.mark.parametrize("name", ["..", ".", "a/b", "x" * 256, "\\u0000", "a\\nb"])
@pytest.mark.parametrize("key", ["labels", "weights"])
def test_a_file_of_a_bundle_has_a_name_in_its_folder(folder: Path, key: str, name: str) -> None:
    manifest = folder / "model.toml"
    lines = [line for line in manifest.read_text().splitlines() if not line.startswith(f"{key} =")]
    manifest.write_text(f'{key} = "{name}"\n' + "\n".join(lines))

    assert f"{manifest}: {key} = " in refusal(lambda: read_bundle(folder))


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").mkdir()
    assert f"{folder / 'labels.txt'} cannot be read: Is a directory" in refusal(lambda: read_bundle(folder))

    (folder / "model.toml").unlink()
    (folder / "model.toml").mkdir()
    assert f"{folder / 'model.toml'} cannot be read: Is a directory" in refusal(lambda: read_bundle(folder))


@pytest.mark.parametrize("labels", [LABELS[:3], (*LABELS, "white")])
def test_another_number_of_labels_than_outputs_is_refused(
    folder: Path, settings: Settings, labels: tuple[str, ...]
) -> None:
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))

    message = refusal(lambda: open_runtime(read_bundle(folder), settings))
    assert f"does not fit small_cnn with {len(labels)} labels" in message


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import pathlib; pathlib.Path(pathlib.os.environ['BOMB']).touch()",)


def test_a_pickle_is_refused_and_not_executed(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "executed"
    monkeypatch.setenv("BOMB", str(trace))
    for write in (lambda path: torch.save({"a": Bomb()}, path), lambda path: path.write_bytes(pickle.dumps(Bomb()))):
        write(folder / "weights.safetensors")
        assert "is no safetensors file" in refusal(lambda: open_runtime(read_bundle(folder), settings))
    file = folder / "weights.safetensors"
    assert "is no safetensors file" in refusal(lambda: resolve_model(f"{MOBILENET}?weights={file}", settings))

    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists(), "this would have gone off"


@pytest.mark.parametrize("name", ["big_cnn", "torchvision:resnet19", "torch:resnet18", "torchvision:", "os:system"])
def test_an_unknown_architecture_is_refused_with_those_that_are_known(name: str) -> None:
    message = refusal(lambda: build(name, 4, {}))

    assert f"The architecture {name!r} is not known" in message
    assert "small_cnn" in message
    assert "mobilenet_v3_small" in message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_cnn", {"depth": 3}),
        ("small_cnn", {"classes": 3}),
        ("small_cnn", {"width": "wide"}),
        ("small_cnn", {"width": -1}),
        ("torchvision:resnet18", {"num_classes": 3}),
        ("torchvision:resnet18", {"zoom": 2}),
        ("torchvision:densenet121", {"drop_rate": "much"}),
        ("torchvision:mobilenet_v2", {"dropout": 7.0}),
    ],
)
def test_options_that_an_architecture_does_not_take_are_refused(name: str, options: dict[str, Any]) -> None:
    assert f"{name} does not take these options" in refusal(lambda: build(name, 4, options))


# torchvision: URIs


def test_random_weights_are_the_same_every_time_and_others_for_another_seed(tmp_path: Path) -> None:
    uri = f"{MOBILENET}?weights=random"
    once, again = (load_settings(home=tmp_path / name) for name in ("once", "again"))

    first = resolve_model(f"{uri}&seed=7", once)

    assert resolve_model(f"{uri}&seed=7", again).model_id == first.model_id
    assert resolve_model(f"{uri}&seed=8", once).model_id != first.model_id
    assert resolve_model(uri, once).model_id == resolve_model(f"{uri}&seed=0", once).model_id


def test_a_torchvision_network_comes_with_the_preprocessing_and_labels_of_its_weights(home: Path) -> None:
    found = resolve_model(RANDOM, load_settings(home=home))
    expected = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    transforms, spec = expected.transforms(), found.spec.preprocessing

    assert list(found.labels) == expected.meta["categories"]
    assert ([spec.resize], [spec.crop]) == (transforms.resize_size, transforms.crop_size)
    assert (list(spec.mean), list(spec.std)) == (transforms.mean, transforms.std)
    assert spec.interpolation == transforms.interpolation.value
    assert (found.spec.name, found.spec.version) == ("mobilenet_v3_small", "random-0")


def test_weights_of_a_file_are_those_of_the_file(home: Path, tmp_path: Path, settings: Settings) -> None:
    weights = resolve_model(RANDOM, load_settings(home=home)).weights
    file = tmp_path / "my weights.safetensors"
    file.write_bytes(weights.read_bytes())

    found = resolve_model(f"{MOBILENET}?weights={file}", settings)

    expected, got = load_file(weights), load_file(found.weights)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert found.model_id == resolve_model(RANDOM, load_settings(home=home)).model_id


def test_a_file_with_other_bytes_is_another_model(tmp_path: Path, settings: Settings) -> None:
    file, uri = tmp_path / "w.safetensors", f"{MOBILENET}?weights={tmp_path / 'w.safetensors'}"
    ids = []
    for value in (0.0, 1.0):
        state = build(MOBILENET, 1_000, {}).state_dict()
        file.write_bytes(save({name: torch.full_like(tensor, value) for name, tensor in state.items()}))
        ids.append(resolve_model(uri, settings).model_id)

    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("torchvision:mobilenet_v9?weights=random", "no classification network 'mobilenet_v9'"),
        ("torchvision:fasterrcnn_resnet50_fpn?weights=random", "no classification network 'fasterrcnn"),
        ("torchvision:?weights=random", "'' is no name of a network"),
        ("torchvision:../../etc?weights=random", "'../../etc' is no name of a network"),
        (f"{MOBILENET}?wieghts=random", "unknown options ['wieghts']"),
        (f"{MOBILENET}?weights=random&seed=one", "seed is 'one'"),
        (f"{MOBILENET}?weights=random&seed=-1", "seed is '-1'"),
        (f"{MOBILENET}?weights=random&seed=", "seed is ''"),
        (f"{MOBILENET}?weights=random&seed={2**64}", f"seed is '{2**64}'"),
        (f"{MOBILENET}?weights=/no/such/file", "the file /no/such/file does not exist"),
        (f"{MOBILENET}?weights=", "does not exist"),
    ],
)
def test_a_wrong_torchvision_uri_is_refused(uri: str, says: str, settings: Settings) -> None:
    assert says in refusal(lambda: resolve_model(uri, settings))
    assert not list(settings.bundles.rglob("*"))


class Hub:
    """What torchvision asks for weights: it gives the same untrained ones, and counts."""

    def __init__(self, network: str) -> None:
        self.asked: list[str] = []
        torch.manual_seed(5)
        self.state = torchvision.models.get_model(network, weights=None).state_dict()

    def __call__(self, url: str, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        self.asked.append(url)
        return self.state


@pytest.mark.parametrize("uri", [MOBILENET, f"{MOBILENET}?weights=default"])
def test_default_weights_are_downloaded_once(uri: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub("mobilenet_v3_small")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", hub)

    found = resolve_model(uri, settings)
    again = resolve_model(uri, settings)

    assert hub.asked == [torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url]
    assert again == found
    got = load_file(found.weights)
    assert all(torch.equal(hub.state[name], got[name]) for name in hub.state)


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), OSError("disk full"), RuntimeError("invalid hash")]
)
def test_a_download_that_fails_says_how_to_go_on_without(
    error: Exception, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)

    message = refusal(lambda: resolve_model(MOBILENET, settings))
    assert "could not be downloaded" in message
    assert f"{MOBILENET}?weights=FILE.safetensors" in message
    assert not list(settings.bundles.iterdir())


def test_processes_that_race_for_a_bundle_end_with_the_same_one(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        uris = [f"{MOBILENET}?weights={write_state(settings)}"] * 4
        found = list(pool.map(lambda uri: resolve_model(uri, settings), uris))

    assert len({bundle.model_id for bundle in found}) == 1
    assert [path for path in settings.bundles.iterdir() if path.name.startswith("tmp")] == []
    assert len(list(settings.bundles.iterdir())) == 1


def write_state(settings: Settings) -> Path:
    settings.home.mkdir(parents=True, exist_ok=True)
    file = settings.home / "w.safetensors"
    torch.manual_seed(0)
    file.write_bytes(save(build(MOBILENET, 1_000, {}).state_dict()))
    return file


@pytest.mark.parametrize("name", classifiers())
def test_every_torchvision_classifier_has_a_preprocessing_that_a_bundle_can_say(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(torch.nn.Module):
        """In place of the network: its weights may have gigabytes, and are not what is asked for here."""

        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.zeros(1))

    monkeypatch.setattr("tasks.models.architectures.build", lambda *_: Tiny())

    found = resolve_model(f"torchvision:{name}?weights=random", settings)

    assert len(found.labels) == 1_000
    assert found.spec.architecture == f"torchvision:{name}"


# s3:// bundles


@pytest.fixture
def stored(bucket: str, s3_settings: dict[str, str], folder: Path, tmp_path: Path) -> tuple[str, Settings, Any]:
    """A bundle in S3: its URI, settings that reach it, and the client."""
    from tasks.storage.s3 import client

    settings = load_settings(home=tmp_path / "home", **s3_settings)
    s3 = client(settings)
    for file in folder.iterdir():
        s3.put_object(Bucket=bucket, Key=f"models/small/{file.name}", Body=file.read_bytes())
    s3.put_object(Bucket=bucket, Key="models/small/", Body=b"")
    s3.put_object(Bucket=bucket, Key="models/small/notes/today.txt", Body=b"x")
    s3.put_object(Bucket=bucket, Key="models/smaller/model.toml", Body=b"another one")
    return f"s3://{bucket}/models/small", settings, s3


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_bundle_in_s3_is_the_same_model_as_its_folder(stored: Any, folder: Path, slash: str) -> None:
    uri, settings, _ = stored

    found = resolve_model(uri + slash, settings)

    assert found.model_id == read_bundle(folder).model_id
    assert sorted(path.name for path in found.folder.iterdir()) == ["labels.txt", "model.toml", "weights.safetensors"]


def test_a_bundle_in_s3_is_copied_once_and_anew_when_it_changes(stored: Any) -> None:
    uri, settings, s3 = stored
    first = resolve_model(uri, settings)
    written = first.weights.stat().st_mtime_ns

    again = resolve_model(uri, settings)
    assert (again.folder, again.weights.stat().st_mtime_ns) == (first.folder, written)

    s3.put_object(Bucket=uri.split("/")[2], Key="models/small/labels.txt", Body=b"a\nb\nc\nd\n")
    changed = resolve_model(uri, settings)
    assert changed.labels == ("a", "b", "c", "d")
    assert changed.model_id != first.model_id


def test_a_prefix_without_a_bundle_is_named(stored: Any) -> None:
    uri, settings, _ = stored

    assert f"no model.toml under {uri}-not" in refusal(lambda: resolve_model(f"{uri}-not", settings))
    with pytest.raises(ConfigurationError, match="'no-such-bucket' does not exist"):
        resolve_model("s3://no-such-bucket/models/", settings)


# Runtimes


def some_pixels(count: int, crop: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, crop, crop, 3), dtype=np.uint8)


def eager(bundle: Bundle, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return load_classifier(bundle)(torch.from_numpy(pixels)).numpy()


@pytest.fixture(params=["small_cnn", "mobilenet_v3_small"])
def network(request: pytest.FixtureRequest, folder: Path, home: Path) -> Bundle:
    return read_bundle(folder) if request.param == "small_cnn" else resolve_model(RANDOM, load_settings(home=home))


def test_both_runtimes_give_the_logits_of_the_eager_network(network: Bundle, home: Path) -> None:
    pixels = some_pixels(5, network.spec.preprocessing.crop)
    expected = eager(network, pixels)
    spread = float(np.ptp(expected, axis=0).max())

    for runtime in (
        open_runtime(network, load_settings(home=home, device="cpu")),
        open_torch(network, "cpu", home, None),
    ):
        found = runtime.predict(pixels)
        assert (found.shape, found.dtype) == ((5, len(network.labels)), np.float32)
        np.testing.assert_allclose(found, expected, atol=min(1e-4, spread / 100))


def test_a_logit_does_not_depend_on_the_batch_nor_on_the_batch_before(network: Bundle, home: Path) -> None:
    runtime = open_runtime(network, load_settings(home=home, device="cpu"))
    pixels = some_pixels(5, network.spec.preprocessing.crop)

    together = runtime.predict(pixels)
    alone = [runtime.predict(pixels[number : number + 1])[0] for number in range(5)]

    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_array_equal(runtime.predict(pixels), together)


def test_pixels_are_scaled_and_normalised_by_the_preprocessing(folder: Path) -> None:
    classifier = load_classifier(read_bundle(folder))
    seen: list[torch.Tensor] = []
    classifier.network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    classifier(torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 16, 16, 3))

    assert seen[0].shape == (1, 3, 16, 16)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))


def test_a_cpu_runs_fp32_through_openvino_and_the_half_precisions_through_torch(
    folder: Path, settings: Settings
) -> None:
    full = open_runtime(read_bundle(folder), settings)
    edit('"fp32"', '"bf16"')(folder)
    half = open_runtime(read_bundle(folder), settings)
    pixels = some_pixels(4, 16)

    assert isinstance(full, OpenVinoRuntime)
    assert isinstance(half, TorchRuntime)
    assert full.device == half.device == "cpu"
    assert half.predict(pixels).dtype == np.float32
    np.testing.assert_allclose(half.predict(pixels), full.predict(pixels), atol=0.02)
    assert not np.allclose(half.predict(pixels), full.predict(pixels), atol=1e-7)


def test_only_the_first_opening_on_a_machine_needs_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tasks.models.bundle import read_bundle; from tasks.models.runtimes import open_runtime;"
        "from tasks.settings import load_settings; from pathlib import Path; import numpy as np;"
        "runtime = open_runtime(read_bundle(Path(sys.argv[1])), load_settings(home=sys.argv[2], device='cpu'));"
        "print(runtime.predict(np.full((1, 16, 16, 3), 9, np.uint8)).tolist(), 'torch' in sys.modules)"
    )

    first, second = (python(code, folder, tmp_path) for _ in range(2))

    assert first.endswith("True")
    assert second == first.removesuffix("True") + "False"


def test_a_changed_bundle_is_converted_anew(folder: Path, settings: Settings) -> None:
    pixels = some_pixels(2, 16)
    before = open_runtime(read_bundle(folder), settings).predict(pixels)
    write_small_bundle(folder, seed=1)

    after = open_runtime(read_bundle(folder), settings).predict(pixels)

    np.testing.assert_allclose(after, eager(read_bundle(folder), pixels), atol=1e-5)
    assert not np.allclose(before, after, atol=1e-3)


def test_a_worker_that_comes_second_in_a_race_uses_what_the_first_converted(folder: Path, settings: Settings) -> None:
    bundle, pixels = read_bundle(folder), some_pixels(2, 16)
    open_runtime(bundle, settings)
    (converted,) = settings.compiled.iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in converted.iterdir()}

    _convert(bundle, converted)

    assert list(settings.compiled.iterdir()) == [converted]
    assert {path.name: path.stat().st_mtime_ns for path in converted.iterdir()} == before
    np.testing.assert_allclose(open_runtime(bundle, settings).predict(pixels), eager(bundle, pixels), atol=1e-5)


def test_a_cpu_is_chosen_where_it_is_asked_for() -> None:
    assert choose_device(load_settings(device="cpu")) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_a_matter_of_configuration() -> None:
    assert choose_device(load_settings(device="auto")) == "cpu"
    with pytest.raises(ConfigurationError, match="AFTERIMAGE_DEVICE is 'cuda'"):
        choose_device(load_settings(device="cuda"))


@pytest.mark.parametrize(
    ("wanted", "there", "device"),
    [("auto", 2, "cuda"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1"), ("cuda:0", 1, "cuda:0"), ("cpu", 2, "cpu")],
)
def test_of_several_gpus_a_worker_takes_the_one_that_is_named(
    wanted: str, there: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr("os.path.exists", lambda _: True)

    assert choose_device(load_settings(device=wanted)) == device


def test_a_gpu_that_is_not_there_is_named_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(ConfigurationError, match="'cuda:2', and torch finds 2 CUDA devices"):
        choose_device(load_settings(device="cuda:2"))


class Planted:
    """What a pickle can do to whoever loads it."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


def test_a_pickle_in_torchs_own_cache_is_not_executed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    url = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url
    cached = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(Planted(tmp_path / "touched"), cached)

    message = refusal(lambda: resolve_model(MOBILENET, settings))

    assert "hold more than tensors" in message
    assert not (tmp_path / "touched").exists()


def test_a_conversion_is_reported_to_nobody(tmp_path: Path) -> None:
    """openvino-telemetry keeps an identity under the user's home as soon as it may send."""
    write_small_bundle(tmp_path / "model")
    program = (
        "import pathlib, sys, openvino_telemetry\n"
        "from tasks.models.bundle import read_bundle\n"
        "from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "OpenVinoRuntime(read_bundle(home / 'model'), home / 'compiled')\n"
        "assert openvino_telemetry.Telemetry().consent is False\n"
    )
    environment = outer_environment(HOME=str(tmp_path))
    environment.pop("CI", None)
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True)
    assert not (tmp_path / "intel").exists()


def test_every_core_has_a_network_and_all_give_the_same_logits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tasks.models.runtimes import openvino_runtime

    monkeypatch.setattr(openvino_runtime, "cores", lambda: 3)
    settings = load_settings(home=home, device="cpu")
    runtime = open_runtime(resolve_model("torchvision:mobilenet_v3_small?weights=random&seed=0", settings), settings)
    pixels = np.random.default_rng(0).integers(0, 256, (runtime.batch_size, 224, 224, 3), dtype=np.uint8)
    assert (runtime.streams, runtime.buffer().shape) == (3, pixels.shape)

    alone = runtime.predict(pixels)
    with ThreadPoolExecutor(6) as pool:
        assert all(np.array_equal(alone, logits) for logits in pool.map(runtime.predict, [pixels] * 12))


def test_a_row_does_not_depend_on_the_batch_that_it_comes_with(home: Path) -> None:
    settings = load_settings(home=home, device="cpu")
    runtime = open_runtime(resolve_model("torchvision:mobilenet_v3_small?weights=random&seed=0", settings), settings)
    pixels = np.random.default_rng(1).integers(0, 256, (runtime.batch_size, 224, 224, 3), dtype=np.uint8)
    together = runtime.predict(pixels)
    assert np.array_equal(np.concatenate([runtime.predict(pixels[:3]), runtime.predict(pixels[3:])]), together)


def test_a_network_that_cannot_be_compiled_says_so_at_every_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compiled beside other things, so opening the runtime cannot tell."""
    monkeypatch.setattr(openvino_runtime, "ALONE", {"NUM_STREAMS": "as many as you like"})
    write_small_bundle(tmp_path / "model")
    runtime = OpenVinoRuntime(read_bundle(tmp_path / "model"), tmp_path)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="number of streams"):
            runtime.predict(runtime.buffer())


def test_two_first_forward_passes_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """With an interpreter that changes threads all the time, they met in one of two processes and stood still."""
    write_small_bundle(tmp_path / "model")
    program = (
        "import pathlib, sys, threading\n"
        "sys.setswitchinterval(1e-6)\n"
        "from tasks.models.bundle import read_bundle\n"
        "from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "runtime, together = OpenVinoRuntime(read_bundle(home / 'model'), home / 'compiled'), threading.Barrier(2)\n"
        "def forward(pixels):\n"
        "    together.wait()\n"
        "    runtime.predict(pixels)\n"
        "threads = [threading.Thread(target=forward, args=(runtime.buffer(),)) for _ in range(2)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    for _ in range(6):
        subprocess.run(command, env=outer_environment(), check=True, timeout=60)


def test_the_network_gets_normalised_pixels_with_the_channels_in_front() -> None:
    """What torchvision's ToTensor and Normalize give, up to the rounding of float32."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    found = Classifier(torch.nn.Identity(), mean, std, torch.float32)(torch.from_numpy(pixels)).numpy()
    expected = ((pixels / 255.0 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    assert found.shape == (2, 3, 5, 5)
    assert np.abs(found - expected).max() < 1e-5
