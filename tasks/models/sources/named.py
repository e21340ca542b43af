"""Networks of a library, by their names: torchvision:NAME and timm:NAME.

    NAME                                       the default weights, downloaded by the library
    NAME?weights=FILE.safetensors              a state dict of that network
    NAME?weights=FILE.safetensors&labels=FILE  one that was trained for labels of your own
    NAME?weights=random&seed=0                 untrained, for benchmarks

The preprocessing is that of the library's own weights, and so are the labels where the URI names none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl

from tasks.errors import ModelError
from tasks.models.bundle import Bundle, read_labels, write_bundle
from tasks.models.fingerprint import file_digest
from tasks.models.sources.filling import fill_once
from tasks.models.spec import ModelSpec, Option, Preprocessing
from tasks.uris import local_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.settings import Settings

    State = Mapping[str, Tensor]

# Scheme -> (module, what a name looks like, a name that there is).
LIBRARIES = {
    "torchvision": ("torchvision_source", re.compile(r"[A-Za-z_]\w*", re.ASCII), "resnet18"),
    "timm": ("timm_source", re.compile(r"[A-Za-z_]\w*(\.\w+)?", re.ASCII), "mobilenetv4_conv_small"),
}


@dataclass(frozen=True)
class Known:
    """What a library says of a network: how images are prepared for its weights, and what their outputs are called.

    `labels` is None where the library has no names for them.
    """

    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    options: Mapping[str, Option] = field(default_factory=dict)


class Library(Protocol):
    """What a module of a library has; both raise ModelError."""

    def known(self, name: str) -> Known:
        """What the library says of a network."""
        ...

    def default_weights(self, name: str) -> State:
        """The state dict of the network's default weights, downloaded or from the library's own cache."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a URI asks for. `weights` is "random", "default" or a file; `labels` is a file, if it names one."""

    uri: str
    library: str
    name: str
    weights: str
    seed: int
    labels: Path | None

    @property
    def architecture(self) -> str:
        """As it stands in model.toml."""
        return f"{self.library}:{self.name}"

    @property
    def version(self) -> str:
        """Which weights they are."""
        if self.weights == "random":
            return f"random-{self.seed}"
        return "default" if self.weights == "default" else file_digest(Path(self.weights))[:32]

    @property
    def folder(self) -> str:
        """The name of the bundle's folder: another one for other weights and other labels."""
        stem = self.name if self.library == "torchvision" else f"{self.library}-{self.name}"
        return f"{stem}-{self.version}" + (f"-{file_digest(self.labels)[:16]}" if self.labels else "")


def resolve_named(uri: str, settings: Settings) -> Bundle:
    """The bundle of a URI whose scheme is in LIBRARIES, made once. Raises ModelError."""
    wanted = _parse(uri)
    return fill_once(settings.bundles / wanted.folder, lambda folder: _fill(folder, wanted))


def _parse(uri: str) -> Wanted:
    library, _, rest = uri.partition(":")
    name, _, query = rest.partition("?")
    _, pattern, example = LIBRARIES[library]
    if not pattern.fullmatch(name):
        raise ModelError(
            f"{uri!r}: {name!r} is no name of a network. Write {library}:NAME, such as {library}:{example}."
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(options) - {"weights", "seed", "labels"}
    if unknown:
        raise ModelError(
            f"{uri!r} has unknown options {sorted(unknown)}. Use weights=FILE and labels=FILE, or weights=random and "
            "seed=NUMBER."
        )
    weights = options.get("weights", "default")
    if weights not in ("random", "default"):
        weights = str(_file(uri, weights, "safetensors file"))
    labels = _file(uri, options["labels"], "file with one label a line") if "labels" in options else None
    return Wanted(uri, library, name, weights, _seed(uri, options.get("seed", "0")), labels)


def _file(uri: str, name: str, what: str) -> Path:
    file = local_path(name)
    if not file.is_file():
        raise ModelError(f"{uri!r}: the file {file} does not exist. Give the path of a {what}.")
    return file


def _seed(uri: str, seed: str) -> int:
    if not seed.isdecimal() or int(seed) >= 2**63:
        raise ModelError(f"{uri!r}: seed is {seed!r}. Give a whole number below 2**63, such as seed=0.")
    return int(seed)


def _fill(folder: Path, wanted: Wanted) -> None:
    """Write the bundle."""
    import torch
    from safetensors.torch import save

    from tasks.models import architectures

    library: Library = import_module(f"{__package__}.{LIBRARIES[wanted.library][0]}")
    known = library.known(wanted.name)
    labels = _labels(wanted, known)
    state = _state(wanted, library)
    torch.manual_seed(wanted.seed)
    network = architectures.build(wanted.architecture, len(labels), known.options)
    if state is None:
        state = network.state_dict()
    else:
        _check_fit(wanted, network, state, len(labels))
    spec = ModelSpec(
        name=wanted.name,
        version=wanted.version if wanted.weights in ("random", "default") else wanted.version[:12],
        architecture=wanted.architecture,
        options=known.options,
        preprocessing=known.preprocessing,
    )
    write_bundle(folder, spec, labels, save({key: value.contiguous().clone() for key, value in state.items()}))


def _labels(wanted: Wanted, known: Known) -> tuple[str, ...]:
    if wanted.labels is not None:
        return read_labels(wanted.labels)
    if known.labels is None:
        raise ModelError(
            f"{wanted.uri!r}: {wanted.library} has no names for the outputs of {wanted.name}. Write one label a line into a "
            "file, in the order of the outputs, and add labels=FILE."
        )
    return known.labels


def _state(wanted: Wanted, library: Library) -> State | None:
    """The tensors that the URI names; None for the network's own, untrained ones."""
    from tasks.models.loading import read_weights

    if wanted.weights == "random":
        return None
    return library.default_weights(wanted.name) if wanted.weights == "default" else read_weights(Path(wanted.weights))


def _check_fit(wanted: Wanted, network: nn.Module, state: State, classes: int) -> None:
    """Raise ModelError where the tensors are not this network's weights, or have another number of outputs."""
    from tasks.models.loading import misfits

    problems = misfits(network, state)
    if not problems:
        return
    source = wanted.weights if wanted.weights != "default" else f"The default weights of {wanted.architecture}"
    found = _outputs(network.state_dict(), state, classes)
    if found is None:
        raise ModelError(
            f"{source} does not fit {wanted.architecture} with {classes} labels: {problems}. Check the network's name."
        )
    labels = wanted.labels or f"{wanted.library}'s own list"
    raise ModelError(
        f"{source}: {found} outputs, and {labels} has {classes} labels. Give the labels that these weights were trained "
        "for, one a line, as labels=FILE."
    )


def _outputs(own: State, state: State, classes: int) -> int | None:
    """How many outputs the tensors have, where that is all that keeps them from fitting; else None."""
    if own.keys() != state.keys():
        return None
    pairs = [(own[name].shape, state[name].shape) for name in own if own[name].shape != state[name].shape]
    is_last = all(left[:1] == (classes,) and left[1:] == right[1:] for left, right in pairs)
    counts = {right[0] for _, right in pairs if right}
    return counts.pop() if is_last and len(counts) == 1 else None


@contextmanager
def tensors_only() -> Iterator[None]:
    """Libraries' files are pickles, and a cached one is not even checked: let torch read tensors from them, no code."""
    forced, allowed = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (forced, allowed)}
    os.environ[forced] = "1"
    try:
        yield
    finally:
        del os.environ[forced]
        os.environ.update({name: value for name, value in before.items() if value is not None})
