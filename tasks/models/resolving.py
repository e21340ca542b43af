"""From a model URI to a bundle.

    torchvision:NAME                               its default weights, downloaded by torchvision
    torchvision:NAME?weights=FILE.safetensors      a state dict of that network
    torchvision:NAME?weights=random&seed=0         untrained, for benchmarks
    s3://BUCKET/PREFIX/                            a bundle in object storage, copied once
    NAME                                           a bundle that ./afterimage models add keeps
    a path                                         a bundle folder

A torchvision URI is turned into a bundle folder once, with the preprocessing and the labels of the network's default
weights, so that everything behind this module knows bundles only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # the error's name only
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from tasks.errors import ModelError
from tasks.models.bundle import Bundle, read_bundle, write_bundle
from tasks.models.fingerprint import file_digest
from tasks.models.shelf import find
from tasks.models.spec import ModelSpec, Preprocessing

if TYPE_CHECKING:
    from tasks.settings import Settings

_OPTIONS: dict[str, dict[str, bool]] = {
    # Networks whose shape with trained weights differs from their shape without.
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


def resolve_model(uri: str, settings: Settings) -> Bundle:
    """The bundle that a model URI names. Raises ModelError, which names the URI and what to do."""
    from tasks.settings import is_name

    if uri.startswith("torchvision:"):
        return _torchvision(uri, settings)
    if uri.startswith("s3://"):
        return _stored(uri, settings)
    if is_name(uri):
        return find(uri, settings)
    return read_bundle(Path(uri.removeprefix("file://")))


def _stored(uri: str, settings: Settings) -> Bundle:
    """Copy a bundle out of object storage; its folder is named by the listing, so a change is fetched anew."""
    from tasks.location import parse_location
    from tasks.storage import open_store

    location = parse_location(uri.rstrip("/") + "/")
    store = open_store(location, settings)
    objects = [image for page in store.pages(location.prefix) for image in page]
    if not any(image.key == f"{location.prefix}model.toml" for image in objects):
        raise ModelError(f"There is no model.toml under {uri}. Put model.toml, the weights and the labels there.")
    state = hashlib.sha256(repr([(image.key, image.etag) for image in objects]).encode()).hexdigest()

    def fill(folder: Path) -> None:
        for image in objects:
            name = image.key.removeprefix(location.prefix)
            if name and "/" not in name:
                (folder / name).write_bytes(store.read(image.key, image.etag).data)

    return _once(settings.bundles / f"stored-{state[:32]}", fill)


def _torchvision(uri: str, settings: Settings) -> Bundle:
    name, _, query = uri.removeprefix("torchvision:").partition("?")
    if not name.isidentifier():
        raise ModelError(
            f"{uri!r}: {name!r} is no name of a network. Write torchvision:NAME, such as torchvision:resnet18."
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(options) - {"weights", "seed"}
    if unknown:
        raise ModelError(
            f"{uri!r} has unknown options {sorted(unknown)}. Use weights=FILE, or weights=random and seed=NUMBER."
        )
    weights = options.get("weights", "default")
    if weights == "random":
        return _once(
            settings.bundles / f"{name}-random-{_seed(uri, options)}", lambda at: _random(at, name, _seed(uri, options))
        )
    if weights == "default":
        return _once(settings.bundles / f"{name}-default", lambda at: _default(at, name))
    file = Path(weights).expanduser()
    if not file.is_file():
        raise ModelError(f"{uri!r}: the file {file} does not exist. Give the path of a safetensors file.")
    digest = file_digest(file)
    return _once(settings.bundles / f"{name}-{digest[:32]}", lambda at: _from_file(at, name, file, digest))


def _seed(uri: str, options: dict[str, str]) -> int:
    seed = options.get("seed", "0")
    if not seed.isdecimal() or int(seed) >= 2**63:
        raise ModelError(f"{uri!r}: seed is {seed!r}. Give a whole number below 2**63, such as seed=0.")
    return int(seed)


def _once(folder: Path, fill: Callable[[Path], None]) -> Bundle:
    """Fill a bundle folder under a scratch name, then rename it; processes that race end with the same folder."""
    if not (folder / "model.toml").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            fill(scratch)
            scratch.chmod(0o755)  # mkdtemp gives it to this user alone; workers may run as others
            os.rename(scratch, folder)
        except OSError:
            if not (folder / "model.toml").exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return read_bundle(folder)


def _random(folder: Path, name: str, seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    _write(folder, name, f"random-{seed}", None)


def _default(folder: Path, name: str) -> None:
    import torchvision

    _weights_enum(name)
    try:
        with _tensors_only():
            network = torchvision.models.get_model(name, weights="DEFAULT")
    except UnpicklingError as error:
        raise ModelError(
            f"The downloaded weights of torchvision:{name} hold more than tensors: {str(error).splitlines()[0]} Nothing of "
            "them was executed. Remove them from torch's cache (TORCH_HOME), and find out how they came there."
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash than its name says.
        raise ModelError(
            f"The weights of torchvision:{name} could not be downloaded: {error}. "
            f"Fetch them elsewhere and give torchvision:{name}?weights=FILE.safetensors."
        ) from None
    _write(folder, name, "default", network.state_dict())


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torchvision's files are pickles, and a cached one is not even checked: let torch read tensors from them, no code."""
    forced, allowed = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (forced, allowed)}
    os.environ[forced] = "1"
    try:
        yield
    finally:
        del os.environ[forced]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _from_file(folder: Path, name: str, file: Path, digest: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file)
    except SafetensorError as error:
        raise ModelError(f"{file} is no safetensors file: {error}. Convert the weights to safetensors.") from None
    _write(folder, name, digest[:12], state)


def _write(folder: Path, name: str, version: str, state: dict[str, Any] | None) -> None:
    """Write the bundle of a torchvision network; without a state dict it keeps its fresh, untrained weights."""
    from safetensors.torch import save

    from tasks.models.architectures import build

    weights = _weights_enum(name)
    transforms = weights.transforms()
    spec = ModelSpec(
        name=name,
        version=version,
        architecture=f"torchvision:{name}",
        options=_OPTIONS.get(name, {}),
        preprocessing=Preprocessing(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        ),
    )
    labels = list(weights.meta["categories"])
    if state is None:
        state = build(spec.architecture, len(labels), spec.options).state_dict()
    write_bundle(folder, spec, labels, save({key: value.contiguous().clone() for key, value in state.items()}))


def _weights_enum(name: str) -> Any:
    """torchvision's entry of the network's default weights: their preprocessing and their labels."""
    import torchvision

    from tasks.models.architectures import classifiers

    if name not in classifiers():
        raise ModelError(f"torchvision has no classification network {name!r}. It has: {', '.join(classifiers())}.")
    return torchvision.models.get_model_weights(name).DEFAULT
