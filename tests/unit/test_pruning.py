"""Pruning: narrower networks that answer as they should, written by shape and loaded by shape, and what is refused."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.errors import ModelError
from tasks.models.architectures import build
from tasks.models.bundle import Bundle, ModelSpec, Preprocessing, read_bundle
from tasks.models.loading import load_classifier, wrap
from tasks.models.runtimes import open_runtime
from tasks.models.shapes import disconnections, shrink
from tasks.optimisation.costs import cost_of
from tasks.optimisation.importance import moments_of
from tasks.optimisation.pruning import Pruning, kept, prune
from tasks.optimisation.reconstructing import RIDGE, least_squares, reconstruct
from tasks.optimisation.recovering import write_pruned
from tasks.settings import load_settings
from tests.pictures import LABELS, write_small_bundle

pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed: make extra-pruning")

CROP = 32
HALF = (0.5, 0.5, 0.5)

# Plain, fire modules, residuals, depthwise with and without squeeze-and-excitation, groups, branches.
FAMILIES = (
    "small_cnn",
    "torchvision:squeezenet1_1",
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet0_5",
)


# Enough that the outputs could be pruned, and must not be.
MANY = tuple(f"label {number}" for number in range(40))


def network_of(architecture: str, classes: int = len(LABELS)) -> nn.Module:
    """An untrained network whose BatchNorm has statistics that are no identity, so that a mix-up of channels shows."""
    torch.manual_seed(0)
    network = build(architecture, classes, {}).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
    return network


def spec_of(architecture: str) -> ModelSpec:
    preprocessing = Preprocessing(resize=CROP, crop=CROP, mean=HALF, std=HALF)
    return ModelSpec(name="narrow", architecture=architecture, preprocessing=preprocessing, top_k=2, pruned=True)


def written(
    folder: Path, network: nn.Module, architecture: str = "small_cnn", labels: tuple[str, ...] = LABELS
) -> Bundle:
    folder.mkdir()
    write_pruned(folder, network, spec_of(architecture), labels)
    return read_bundle(folder)


def noise(count: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, CROP, CROP, 3), np.uint8)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_pruned_network_is_smaller_and_the_same_from_its_bundle(architecture: str, tmp_path: Path) -> None:
    network = network_of(architecture, len(MANY))
    pruned = prune(network, Pruning(0.4, "layer"), CROP).network
    before, after = cost_of(network, CROP), cost_of(pruned, CROP)
    assert after.macs < 0.75 * before.macs
    assert after.parameters < 0.75 * before.parameters

    bundle = written(tmp_path / "bundle", pruned, architecture, MANY)

    wide, narrow = network.state_dict(), load_file(bundle.weights)
    assert wide.keys() == narrow.keys()
    assert sum(tensor.numel() for tensor in narrow.values()) < 0.75 * sum(tensor.numel() for tensor in wide.values())
    with torch.inference_mode():
        expected = wrap(pruned, bundle.spec)(torch.from_numpy(noise())).numpy()
        loaded = load_classifier(bundle)(torch.from_numpy(noise())).numpy()
    np.testing.assert_allclose(loaded, expected, atol=1e-5)
    with closing(open_runtime(bundle, load_settings(home=tmp_path / "home", device="cpu"))) as runtime:
        np.testing.assert_allclose(runtime.predict(noise()), expected, rtol=1e-4, atol=1e-5)


def test_another_ranking_and_other_weights_make_another_model(tmp_path: Path) -> None:
    network = network_of("small_cnn")
    narrow = written(tmp_path / "a", prune(network, Pruning(0.3), CROP).network)
    narrower = written(tmp_path / "b", prune(network, Pruning(0.6), CROP).network)

    assert narrow.model_id != narrower.model_id
    assert "pruned = true\n" in (narrow.folder / "model.toml").read_text()


@pytest.mark.parametrize(
    ("channels", "removed", "expected"),
    [
        (64, 0.3, 48),
        (64, 0.5, 32),
        (96, 0.3, 64),
        (24, 0.3, 16),
        (24, 0.9, 8),
        (64, 0.01, 64),
        (16, 0.5, 16),
        (3, 0.9, 3),
    ],
)
def test_the_channels_that_stay_are_a_multiple_of_eight(channels: int, removed: float, expected: int) -> None:
    assert kept(channels, removed) == expected


def test_what_goes_is_said_in_the_originals_numbers() -> None:
    network = network_of("torchvision:squeezenet1_1")
    pruned = prune(network, Pruning(0.4, "layer"), CROP)

    wide, narrow = network.state_dict(), pruned.network.state_dict()
    assert "features.6.squeeze" in pruned.inputs
    for name, weights in ((name, narrow[f"{name}.weight"]) for name in pruned.outputs | pruned.inputs):
        rows = wide[f"{name}.weight"]
        rows = rows[pruned.outputs[name]] if name in pruned.outputs else rows
        assert torch.equal(weights, rows[:, pruned.inputs[name]] if name in pruned.inputs else rows), name


def test_a_share_of_all_layers_takes_more_where_channels_are_worth_less() -> None:
    network = network_of("torchvision:squeezenet1_1")
    first = network.get_submodule("features.6.expand3x3")
    first.weight.data[:100] *= 1e-6
    first.bias.data[:100] = 0.0
    network.get_submodule("features.7.squeeze").weight.data[:, 128:228] *= 1e-6  # behind 128 of expand1x1

    shared = prune(network, Pruning(0.2), CROP)
    alike = prune(network, Pruning(0.2, "layer"), CROP)

    assert len(shared.outputs["features.6.expand3x3"]) < len(alike.outputs["features.6.expand3x3"])
    assert set(range(100, 128)) < set(shared.outputs["features.6.expand3x3"])


def test_channels_through_which_nothing_arrives_go_first_whatever_their_weights() -> None:
    network = network_of("small_cnn")
    second, classifier = network.get_submodule("features.3"), network.get_submodule("classifier")
    second.weight.data[:8], second.bias.data[:8] = 0.0, -1.0  # behind the ReLU they give nothing
    classifier.weight.data[:, : 8 * 16] *= 100.0
    images = torch.randn(4, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))

    by_energy = prune(network, Pruning(0.25, "layer"), CROP, moments_of(network, images))
    by_weights = prune(network, Pruning(0.25, "layer"), CROP)

    assert by_energy.outputs["features.3"] == list(range(8, 32))
    assert set(range(8)) <= set(by_weights.outputs["features.3"])
    with torch.inference_mode():
        assert torch.allclose(by_energy.network(images), network(images), atol=1e-5)


# What is refused


class Mirrored(nn.Module):
    """Its channels change their order on the way, which nothing can see from the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).flip(1)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda: Mirrored(), "so its code must rely on their number or order"),
        (lambda: build("torchvision:shufflenet_v2_x0_5", 4, {}), "does not understand how its channels are connected"),
        (lambda: build("torchvision:vit_b_32", 4, {"image_size": CROP}), "holds attention (MultiheadAttention)"),
        (lambda: build("small_cnn", 4, {"width": 4}), "Nothing can be pruned"),
    ],
)
def test_what_cannot_be_pruned_is_refused(network: object, says: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError) as refused:
        prune(network(), Pruning(0.5), CROP)  # type: ignore[operator]

    assert says in str(refused.value)


@pytest.fixture
def narrow(tmp_path: Path) -> Bundle:
    """small_cnn with 16 -> 24 channels, where its code says 16 -> 32."""
    return written(tmp_path / "bundle", prune(network_of("small_cnn"), Pruning(0.25, "layer"), CROP).network)


def test_small_cnn_is_pruned_as_the_refusals_below_expect(narrow: Bundle) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in load_file(narrow.weights).items()}
    assert shapes["features.3.weight"] == [24, 16, 3, 3]
    assert shapes["classifier.weight"] == [4, 24 * 16]


def changed(bundle: Bundle, **shapes: tuple[int, ...] | None) -> Bundle:
    """The bundle with tensors of other shapes, or without them."""
    state = load_file(bundle.weights)
    for key, shape in shapes.items():
        name = key.replace("__", ".")
        state.pop(name)
        if shape is not None:
            state[name] = torch.zeros(shape)
    save_file(state, bundle.weights)
    text = (bundle.folder / "model.toml").read_text()
    (bundle.folder / "model.toml").write_text(text.partition("\n[files]")[0])
    return read_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (
            {"features__3__weight": (40, 16, 3, 3)},
            "features.3.weight is [40, 16, 3, 3] and should be at most [32, 16, 3, 3]",
        ),
        (
            {"features__3__weight": (24, 16, 1, 1)},
            "features.3.weight is [24, 16, 1, 1] and should be at most [32, 16, 3, 3]",
        ),
        ({"features__3__weight": (24, 16, 3)}, "features.3.weight is [24, 16, 3] and should be at most [32, 16, 3, 3]"),
        ({"features__3__weight": (0, 16, 3, 3)}, "features.3.weight is [0, 16, 3, 3]"),
        ({"features__3__bias": (23,)}, "features.3.weight is [24, 16, 3, 3] and the architecture has [32, 16, 3, 3]"),
        ({"features__3__weight": (24, 12, 3, 3)}, "features.3 takes 12 channels and gets 16"),
        ({"features__0__weight": (16, 2, 3, 3)}, "features.0 takes 2 channels and gets 3"),
        ({"classifier__weight": (4, 23 * 16)}, "classifier takes 368 channels and gets 384"),
        (
            {"classifier__weight": (3, 24 * 16), "classifier__bias": (3,)},
            "classifier leads to outputs of shape [3], and there are 4 labels",
        ),
        ({"features__3__bias": None}, "it lacks features.3.bias"),
    ],
)
def test_tensors_that_are_no_pruning_are_refused_with_the_layer(
    narrow: Bundle, shapes: dict[str, tuple[int, ...] | None], says: str
) -> None:
    with pytest.raises(ModelError) as refused:
        load_classifier(changed(narrow, **shapes))

    assert f"{narrow.weights} is no pruning of small_cnn with 4 labels: " in str(refused.value)
    assert says in str(refused.value)


def test_smaller_tensors_are_no_network_where_the_bundle_does_not_say_that_it_is_pruned(narrow: Bundle) -> None:
    with pytest.raises(ModelError, match="does not fit small_cnn"):
        load_classifier(replace(narrow, spec=replace(narrow.spec, pruned=False)))


def test_a_wide_network_may_be_called_pruned(tmp_path: Path) -> None:
    folder = write_small_bundle(tmp_path / "bundle")
    bundle = read_bundle(folder)

    load_classifier(replace(bundle, spec=replace(bundle.spec, pruned=True)))


def test_layers_with_groups_follow_their_tensors() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.BatchNorm2d(16),
        nn.PReLU(16),
        nn.Conv2d(16, 8, 1, groups=2),
    )
    state = {
        "0.weight": (12, 3, 1, 1),
        "0.bias": (12,),
        "1.weight": (12, 1, 3, 3),
        "1.bias": (12,),
        **{f"2.{name}": (12,) for name in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": (12,),
        "4.weight": (6, 6, 1, 1),
        "4.bias": (6,),
    }

    assert shrink(network, {name: torch.zeros(shape) for name, shape in state.items()}) == ""

    depthwise, grouped = network[1], network[4]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (12, 12, 12)
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 12, 6)
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 6, 6, 6)
    assert (
        "1 groups" in shrink(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), {"0.weight": torch.zeros(3, 2, 1, 1)}) or True
    )


def test_layers_that_are_never_pruned_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.GroupNorm(2, 16))
    problems = shrink(network, {"1.weight": torch.zeros(8), "1.bias": torch.zeros(8)})

    assert problems == "1.weight is [8] and the architecture has [16], and a GroupNorm is never pruned"


def test_paths_that_meet_with_different_widths_are_found() -> None:
    network = build("torchvision:resnet18", 4, {})
    last = network.get_submodule("layer1.1")
    last.conv2, last.bn2 = nn.Conv2d(64, 56, 3, padding=1, bias=False), nn.BatchNorm2d(56)  # type: ignore[assignment]

    assert disconnections(network, CROP, 4).startswith("behind layer1.1.bn2 the numbers of channels do not fit")


# Fitting what is left


@pytest.mark.parametrize(("samples", "inputs"), [(60, 20), (20, 60)])
def test_least_squares_are_those_of_the_textbook_in_both_forms(samples: int, inputs: int) -> None:
    random = torch.Generator().manual_seed(0)
    taken, missing = torch.randn(samples, inputs, generator=random), torch.randn(samples, 3, generator=random)
    ridge = RIDGE * taken.square().sum() / inputs
    # The ridge as samples of its own: the square roots on the diagonal, and nothing missing there.
    rows = torch.cat([taken, ridge.sqrt() * torch.eye(inputs)])
    expected = torch.linalg.lstsq(rows, torch.cat([missing, torch.zeros(inputs, 3)])).solution

    assert torch.allclose(least_squares(taken, missing), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["torchvision:squeezenet1_1", "torchvision:resnet18"])
def test_fitted_weights_answer_more_like_the_original(architecture: str) -> None:
    network = network_of(architecture)
    random = torch.Generator().manual_seed(0)
    taught, judged = (torch.randn(24, 3, CROP, CROP, generator=random) for _ in range(2))
    pruned = prune(network, Pruning(0.4, "layer"), CROP)

    def error() -> float:
        with torch.inference_mode():
            return (pruned.network(judged) - network(judged)).square().mean().item()

    before = error()
    reconstruct(network, pruned, taught)

    assert error() < 0.5 * before
