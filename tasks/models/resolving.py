"""From a model URI to a bundle.

    torchvision:NAME, timm:NAME                    a network of a library; sources/named.py says what may follow
    s3://BUCKET/PREFIX/                            a bundle in object storage, copied once
    bundle:NAME                                    a bundle that ./afterimage models add keeps
    a path                                         a bundle folder

A library's network is turned into a bundle folder once, so that everything behind this module knows bundles only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import ModelError
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.shelf import find
from tasks.models.sources.filling import fill_once
from tasks.models.sources.named import LIBRARIES, resolve_named
from tasks.uris import KEPT

if TYPE_CHECKING:
    from tasks.settings import Settings


def resolve_model(uri: str, settings: Settings) -> Bundle:
    """The bundle that a model URI names. Raises ModelError, which names the URI and what to do."""
    if uri.partition(":")[0] in LIBRARIES and ":" in uri:
        return resolve_named(uri, settings)
    if uri.startswith("s3://"):
        return _stored(uri, settings)
    if uri.startswith(KEPT):
        return find(uri.removeprefix(KEPT), settings)
    folder = Path(uri.removeprefix("file://"))
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file, and a model is a bundle folder. Make one of it with ./afterimage models add {folder.name}, or "
            "name the folder that it lies in."
        )
    return read_bundle(folder)


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
            if name not in ("", ".", "..") and "/" not in name:
                (folder / name).write_bytes(store.read(image.key, image.etag).data)

    return fill_once(settings.bundles / f"stored-{state[:32]}", fill)
