"""Networks by their names: trained for labels of one's own, timm's beside torchvision's, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save

from tasks.errors import ConfigurationError, ModelError
from tasks.models.architectures import build
from tasks.models.bundle import Bundle
from tasks.models.loading import load_classifier
from tasks.models.resolving import resolve_model
from tasks.pipelines import load_pipelines
from tasks.settings import Settings, load_settings
from tasks.uris import absolute_uri

PETS = ("cat", "dog", "hamster")
RESNET, LCNET = "torchvision:resnet18", "timm:lcnet_050"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", device="cpu")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "pets.txt"
    file.write_text("".join(f"{label}\n" for label in PETS), encoding="utf-8")
    return file


def weights(folder: Path, architecture: str, classes: int, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    file = folder / f"{architecture.replace(':', '-')}-{classes}-{seed}.safetensors"
    file.write_bytes(save({key: value.clone() for key, value in build(architecture, classes, {}).state_dict().items()}))
    return file


def refusal(uri: str, settings: Settings) -> str:
    with pytest.raises(ModelError) as refused:
        resolve_model(uri, settings)
    return str(refused.value)


def outputs(bundle: Bundle) -> tuple[int, ...]:
    crop = bundle.spec.preprocessing.crop
    with torch.inference_mode():
        return tuple(load_classifier(bundle)(torch.zeros(2, crop, crop, 3, dtype=torch.uint8)).shape)


# Networks that were trained for labels of one's own


@pytest.mark.parametrize("network", [RESNET, LCNET, "torchvision:squeezenet1_1"])
def test_a_fine_tuned_network_has_the_labels_of_the_file(
    network: str, settings: Settings, labels: Path, tmp_path: Path
) -> None:
    file = weights(tmp_path, network, 3)

    found = resolve_model(f"{network}?weights={file}&labels={labels}", settings)

    assert found.labels == PETS
    assert outputs(found) == (2, 3)
    assert found.spec.architecture == network


def test_other_labels_and_other_weights_are_other_models(settings: Settings, labels: Path, tmp_path: Path) -> None:
    uris = [f"{RESNET}?weights={weights(tmp_path, RESNET, 3, seed)}&labels={labels}" for seed in (0, 1)]
    first, second = (resolve_model(uri, settings) for uri in uris)
    labels.write_text("cat\ndog\ngerbil\n", encoding="utf-8")
    third = resolve_model(uris[0], settings)

    assert len({bundle.model_id for bundle in (first, second, third)}) == 3
    assert third.labels == ("cat", "dog", "gerbil")


@pytest.mark.parametrize("network", [RESNET, LCNET])
def test_weights_for_another_number_of_labels_are_refused_in_one_sentence(
    network: str, settings: Settings, labels: Path, tmp_path: Path
) -> None:
    file = weights(tmp_path, network, 5)

    message = refusal(f"{network}?weights={file}&labels={labels}", settings)
    assert message.startswith(f"{file}: 5 outputs, and {labels} has 3 labels.")
    message = refusal(f"{network}?weights={file}", settings)
    assert message.startswith(f"{file}: 5 outputs, and {network.partition(':')[0]}'s own list has 1000 labels.")
    assert message.endswith("as labels=FILE.")
    assert not list(settings.bundles.iterdir())


def test_weights_of_another_network_are_refused(settings: Settings, tmp_path: Path) -> None:
    file = weights(tmp_path, "torchvision:squeezenet1_1", 1_000)

    assert f"{file} does not fit {RESNET} with 1000 labels: it lacks" in refusal(f"{RESNET}?weights={file}", settings)


def test_weights_that_are_not_finite_are_refused(settings: Settings, tmp_path: Path) -> None:
    state = build(RESNET, 1_000, {}).state_dict()
    state["fc.bias"][3] = float("nan")
    (tmp_path / "w.safetensors").write_bytes(save(dict(state)))

    assert "not finite" in refusal(f"{RESNET}?weights={tmp_path / 'w.safetensors'}", settings)


def test_a_file_of_labels_is_read_as_that_of_a_bundle(settings: Settings, labels: Path) -> None:
    assert "nowhere.txt does not exist" in refusal(f"{RESNET}?weights=random&labels=nowhere.txt", settings)
    labels.write_text("cat\n\nhamster\n", encoding="utf-8")
    assert "pets.txt has no label in line 2" in refusal(f"{RESNET}?weights=random&labels={labels}", settings)


def test_a_file_in_the_place_of_a_bundle_says_how_to_make_one_of_it(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "network.onnx").write_bytes(b"")

    assert "./afterimage models add network.onnx" in refusal(str(tmp_path / "network.onnx"), settings)


# timm


def test_a_network_of_timm_comes_with_timms_preprocessing(settings: Settings) -> None:
    """resnet50.a1_in1k is evaluated at 224 of 235 pixels by bicubic resizing: 224 / 0.95 rounded down."""
    import timm

    found = resolve_model("timm:resnet50.a1_in1k?weights=random", settings)

    spec, data = (
        found.spec.preprocessing,
        timm.data.resolve_data_config({}, model=timm.create_model("resnet50.a1_in1k")),
    )
    transform = timm.data.create_transform(**data)
    assert (spec.resize, spec.crop, spec.interpolation) == (235, 224, "bicubic")
    assert (transform.transforms[0].size, transform.transforms[1].size) == (spec.resize, (spec.crop, spec.crop))
    assert (spec.mean, spec.std) == (data["mean"], data["std"])
    assert found.spec.architecture == "timm:resnet50.a1_in1k"


def test_a_class_of_imagenet_has_one_name_whoever_made_the_network(settings: Settings) -> None:
    from timm.data import ImageNetInfo

    found = resolve_model(f"{LCNET}?weights=random", settings)

    assert found.labels == tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
    theirs = ImageNetInfo()
    same = [label in theirs.index_to_description(number) for number, label in enumerate(found.labels)]
    assert np.mean(same) > 0.95, "and the order is timm's"


def test_random_weights_of_timm_are_the_same_every_time(tmp_path: Path) -> None:
    once, again = (load_settings(home=tmp_path / name) for name in ("once", "again"))

    first = resolve_model(f"{LCNET}?weights=random&seed=7", once)

    assert resolve_model(f"{LCNET}?weights=random&seed=7", again).model_id == first.model_id
    assert resolve_model(f"{LCNET}?weights=random&seed=8", once).model_id != first.model_id


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("timm:resnet19?weights=random", "has no network 'resnet19'. Its names are"),
        ("timm:resnet50.no_such_tag?weights=random", "has no network 'resnet50.no_such_tag'"),
        ("timm:hf_hub:someone/network?weights=random", "'hf_hub:someone/network' is no name of a network"),
        ("timm:hf-hub:someone/network", "is no name of a network"),
        ("timm:local-dir:/tmp/network", "is no name of a network"),
        ("timm:../../etc?weights=random", "is no name of a network"),
        ("timm:?weights=random", "'' is no name of a network. Write timm:NAME"),
        (f"{LCNET}?checkpoint=x", "unknown options ['checkpoint']"),
        (f"{LCNET}?weights=/no/such/file", "the file /no/such/file does not exist"),
        ("timm:convnext_tiny.in12k?weights=random", "has no names for the outputs of convnext_tiny.in12k"),
    ],
)
def test_a_wrong_timm_uri_is_refused(uri: str, says: str, settings: Settings) -> None:
    assert says in refusal(uri, settings)
    assert not list(settings.bundles.rglob("*"))


def test_preprocessing_that_no_bundle_can_say_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    import timm

    trained = timm.models.get_pretrained_cfg("lcnet_050")
    for change, says in (
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"crop_mode": "squash"}, "crop mode 'squash'"),
        ({"input_size": (1, 28, 28)}, "takes 1 x 28 x 28"),
        ({"input_size": (3, 224, 256)}, "takes 3 x 224 x 256"),
    ):
        changed = replace(trained, **change)
        monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _, found=changed: found)
        assert says in refusal(f"{LCNET}?weights=random", settings)


@pytest.mark.parametrize("name", ["timm:hf_hub:someone/network", "timm:resnet19", "timm:", "timm:local-dir:/tmp"])
def test_an_architecture_that_is_not_timms_own_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is not known"):
        build(name, 4, {})


@pytest.mark.parametrize(
    "options", [{"checkpoint_path": "evil.pth"}, {"pretrained": True}, {"pretrained_cfg": "x"}, {"zoom": 2}]
)
def test_an_option_that_makes_timm_read_a_file_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="lcnet_050 does not take these options"):
        build(LCNET, 4, options)


def test_options_of_a_timm_network_reach_it() -> None:
    assert build(LCNET, 4, {"drop_rate": 0.5}).drop_rate == 0.5


def test_a_download_that_fails_says_how_to_go_on_without(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub itself, told that there is no network: elsewhere it would try for a minute."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(settings.home))

    message = refusal(LCNET, settings)

    assert "The weights of timm:lcnet_050 could not be downloaded" in message
    assert "timm:lcnet_050?weights=FILE.safetensors" in message
    assert not list(settings.bundles.iterdir())


class Planted:
    """What a pickle can do to whoever loads it."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


def test_a_pickle_that_timm_downloads_is_not_executed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an old cache may hold it, opened by a caller in timm who does not ask for tensors only."""
    torch.save(Planted(tmp_path / "touched"), tmp_path / "w.bin")
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda *_, **__: torch.load(tmp_path / "w.bin", weights_only=False),
    )

    assert "hold more than tensors" in refusal(LCNET, settings)
    assert not (tmp_path / "touched").exists()


def test_without_timm_its_networks_name_what_to_install(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.extras.find_spec", lambda _: None)

    with pytest.raises(ConfigurationError, match=r"timm:lcnet_050 needs the package timm, .* make extra-timm"):
        resolve_model(f"{LCNET}?weights=random", settings)


# pipelines.toml


def test_pipelines_may_name_networks_of_timm_and_files_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.toml"
    uri = "timm:lcnet_050?weights=w/pets.safetensors&labels=../pets.txt"
    file.write_text(f'[pets]\nimages = "photos"\nmodel = "{uri}"\n', encoding="utf-8")

    found = load_pipelines(file)["pets"].model

    assert found == f"timm:lcnet_050?weights={tmp_path}/w/pets.safetensors&labels={tmp_path.parent}/pets.txt"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("torchvision:resnet18?labels=a.txt&weights=random", "torchvision:resnet18?labels=/here/a.txt&weights=random"),
        ("torchvision:resnet18?weights=w&labels=random", "torchvision:resnet18?weights=/here/w&labels=/here/random"),
        ("timm:lcnet_050?weights=default", "timm:lcnet_050?weights=default"),
        ("timm:lcnet_050", "timm:lcnet_050"),
    ],
)
def test_only_files_become_absolute(uri: str, expected: str) -> None:
    assert absolute_uri(uri, Path("/here")) == expected
