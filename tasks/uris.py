"""URIs of images and of models as people write them: relative paths become absolute ones, and plain names stay names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote_plus

# The files in torchvision:NAME?weights=FILE&labels=FILE.
_FILES = re.compile(r"([?&]weights=(?!(?:random|default)(?:&|$))|[?&]labels=)([^&]+)")


def is_name(model: str) -> bool:
    """Whether a model URI is a plain name, of a bundle that is kept under AFTERIMAGE_HOME/models."""
    return not model.startswith((".", "~")) and not {"/", "\\", ":"} & set(model)


def absolute_model(uri: str, base: Path) -> str:
    """As absolute_uri; a plain name stays one, unless a folder of that name lies in `base`."""
    return uri if is_name(uri) and not (base / uri).is_dir() else absolute_uri(uri, base)


def absolute_models(model: str | tuple[str, ...], base: Path) -> str | tuple[str, ...]:
    """One model's URI, or each of a cascade's, as absolute_model gives it."""
    return absolute_model(model, base) if isinstance(model, str) else tuple(absolute_model(uri, base) for uri in model)


def absolute_uri(uri: str, base: Path) -> str:
    """Leave URIs with a scheme as they are; turn local paths into absolute ones below `base`."""
    if uri.startswith(("torchvision:", "timm:")):
        return _FILES.sub(lambda found: found[1] + quote(_absolute(unquote_plus(found[2]), base)), uri)
    if "://" in uri:
        return uri
    return _absolute(uri, base)


def _absolute(uri: str, base: Path) -> str:
    return os.path.normpath(base / Path(uri).expanduser()) + ("/" if uri.endswith("/") else "")
