"""URIs of images and of models as people write them: relative paths become absolute ones."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote_plus

from tasks.errors import ConfigurationError

# In front of the name of a model that ./afterimage models keeps.
KEPT = "bundle:"

# Where people put secrets into addresses: before the host, and into a signed query.
_USER = re.compile(r"(://)[^\s'\"]*@")
_SIGNED = re.compile(r"([?&](?:x-amz-[a-z-]+|awsaccesskeyid|signature|sig|token|password)=)[^&\s'\"]*", re.IGNORECASE)

# The files in torchvision:NAME?weights=FILE&labels=FILE.
_FILES = re.compile(r"([?&]weights=(?!(?:random|default)(?:&|$))|[?&]labels=)([^&]+)")


def absolute_models(model: str | tuple[str, ...], base: Path) -> str | tuple[str, ...]:
    """One model's URI, or each of a cascade's, as absolute_uri gives it."""
    return absolute_uri(model, base) if isinstance(model, str) else tuple(absolute_uri(uri, base) for uri in model)


def absolute_uri(uri: str, base: Path) -> str:
    """Leave URIs with a scheme as they are; turn local paths into absolute ones below `base`."""
    if uri.startswith(("torchvision:", "timm:")):
        return _FILES.sub(lambda found: found[1] + quote(_absolute(unquote_plus(found[2]), base)), uri)
    if "://" in uri or uri.startswith(KEPT):
        return uri
    return _absolute(uri, base)


def without_secrets(text: str) -> str:
    """A text that quotes what somebody wrote, without the users, passwords and signatures of the addresses in it."""
    return _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", text))


def _absolute(uri: str, base: Path) -> str:
    return os.path.normpath(base / local_path(uri)) + ("/" if uri.endswith("/") else "")


def local_path(path: str) -> Path:
    """A path as a person writes it, with `~` for a home. Raises ConfigurationError where there can be no such path."""
    if "\0" in path:
        raise ConfigurationError(f"{path!r} holds a NUL, which no path has. Correct it.")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigurationError(
            f"{path!r} begins with the home of somebody whom this machine does not know. Write the whole path."
        ) from None
