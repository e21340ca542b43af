"""Networks from files of torch.export.

`torch.export.load` falls back to pickle where a file asks for it, so opening one may execute what its maker wrote. A bundle
must say `trusted = true` and pin the file's sha256 (manifest.py), and both are checked before the file is opened.
"""

from __future__ import annotations

import torch
from torch import nn

from tasks.errors import ModelError
from tasks.models.bundle import Bundle, checked_digest


def load_exported(bundle: Bundle) -> nn.Module:
    """The network: float [n, 3, crop, crop], normalised, to logits [n, classes]. Raises ModelError."""
    pinned = bundle.spec.files.get(bundle.spec.weights)
    if not bundle.spec.trusted or pinned is None:
        raise ModelError(
            f"{bundle.weights} may execute code when it is opened. Set trusted = true in model.toml and pin its sha256 under "
            "[files], if you know who made it."
        )
    checked_digest(bundle.weights, bundle.spec)
    try:
        program = torch.export.load(bundle.weights)
    except Exception as error:  # zip, JSON and pickle raise what they like
        raise ModelError(
            f"{bundle.weights} is no file of torch.export.save that torch {torch.__version__} reads: {error}. Export it "
            "again with this version."
        ) from None
    return _Exported(program.module())


class _Exported(nn.Module):
    """An exported program as a module: it has no modes, and says so by an error where others ignore eval()."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _Exported:
        """Exported once and for all: there is nothing to switch."""
        self.training = mode
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a normalised batch."""
        logits: torch.Tensor = self.program(images)
        return logits
