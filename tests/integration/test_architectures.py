"""The usual networks in every runtime of a CPU: each loads, has a fingerprint, and gives the top-1 of eager torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from tasks.models.architectures import build
from tasks.models.bundle import Bundle, read_bundle, write_bundle
from tasks.models.loading import load_classifier
from tasks.models.runtimes import open_runtime, openvino_runtime
from tasks.models.spec import ModelSpec, Preprocessing
from tasks.settings import load_settings

CROP, IMAGES, LABELS = 64, 8, 10  # small pictures and few labels: shapes of layers are what differs between runtimes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NETWORKS = [
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:squeezenet1_0",
    "torchvision:squeezenet1_1",
    "torchvision:efficientnet_b0",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:mnasnet0_5",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "timm:lcnet_050",
]

CLOSE = 3e-3  # of logits whose deviation is 3: another order of additions


def pictures() -> npt.NDArray[np.uint8]:
    """Patches of colour under some noise, uint8 [IMAGES, CROP, CROP, 3]: they differ as pictures do."""
    random = np.random.default_rng(0)
    patches = random.integers(0, 256, (IMAGES, 4, 4, 3)).repeat(CROP // 4, axis=1).repeat(CROP // 4, axis=2)
    return (patches + random.normal(0, 20, patches.shape)).clip(0, 255).astype(np.uint8)


def spread(network: nn.Module, images: Tensor) -> None:
    """Make an untrained network's answers mean something: BatchNorm takes its statistics from the images, and the last layer
    is shifted and scaled until what it gives has mean 0 for each label, and the logits a deviation of 3."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    given: list[Tensor] = []
    last.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    assert last.bias is not None
    with torch.no_grad():
        network.train()(images)
        network.eval()(images)
        last.bias.sub_(given[-1].transpose(0, 1).flatten(1).mean(1))
        scale = 3.0 / network(images).std()
        last.weight.mul_(scale)
        last.bias.mul_(scale)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small are computed by one thread in a third of the time that two wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    torch.manual_seed(0)
    spec = ModelSpec(request.param, request.param, Preprocessing(CROP, CROP, MEAN, STD))
    network = build(request.param, LABELS, {})
    normalised = ((torch.from_numpy(pictures()) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    spread(network, normalised.contiguous())
    content = save({name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()})
    write_bundle(tmp_path, spec, [str(number) for number in range(LABELS)], content)
    return read_bundle(tmp_path)


@pytest.mark.parametrize("bundle", NETWORKS, indirect=True)
def test_a_network_gives_the_top_1_of_eager_torch_in_every_runtime(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runtime, "cores", lambda: 1)  # one network is compiled, and not one for each core
    with torch.inference_mode():
        expected = load_classifier(bundle)(torch.from_numpy(pictures())).numpy()
    best = np.sort(expected, axis=1)
    assert len(bundle.model_id) == 64
    assert len(set(expected.argmax(1).tolist())) > 1, "the answers differ between pictures"
    assert np.median(best[:, -1] - best[:, -2]) > 0.1, "and are clear"

    for runtime in ("openvino", "onnxruntime"):
        opened = open_runtime(
            bundle, load_settings(home=tmp_path / "home", device="cpu", runtime=runtime, batch_size=IMAGES)
        )
        found = opened.predict(pictures())
        opened.close()
        assert np.abs(found - expected).max() < CLOSE, runtime
        clear = best[:, -1] - best[:, -2] > 2 * CLOSE
        np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])
