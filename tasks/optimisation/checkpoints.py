"""Where a distillation stands after each epoch, so that one that is killed goes on from there.

    <home>/distilling/<key>/epoch-00003/student.safetensors      weights and BatchNorm's statistics
                                        optimiser.safetensors    what the optimiser remembers of each weight
                                        state.json               epochs that are done, their losses

A checkpoint is a folder that is filled under another name and renamed: it is there as a whole, or not at all. The folder
above can be deleted whenever nothing is distilled.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import ConfigurationError, ModelError

STUDENT, OPTIMISER, STATE = "student.safetensors", "optimiser.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one distillation."""

    folder: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out. Raises ConfigurationError where one is at it; a killed one holds nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"Another process distils in {self.folder}. Wait until it has ended, and run the same command again."
                ) from None
            for left in self.folder.glob(".writing-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            yield

    def restore(self, student: nn.Module, optimiser: torch.optim.Optimizer) -> list[float]:
        """Bring both to where the newest checkpoint left them; returns the loss of each epoch that is done, or nothing.

        Raises ModelError where a checkpoint is damaged.
        """
        there = self.there()
        if not there:
            return []
        from safetensors.torch import load_file

        try:
            student.load_state_dict(load_file(there[-1] / STUDENT))
            _load_memory(optimiser, load_file(there[-1] / OPTIMISER))
            losses: list[float] = json.loads((there[-1] / STATE).read_text(encoding="utf-8"))["losses"]
        except Exception as error:  # safetensors, torch and JSON raise what they like
            raise ModelError(
                f"The checkpoint {there[-1]} cannot be read: {error}. Remove {self.folder}, and the distillation starts anew."
            ) from None
        return losses

    def write(self, student: nn.Module, optimiser: torch.optim.Optimizer, losses: list[float]) -> None:
        """Keep the state after `len(losses)` epochs, and drop the older ones."""
        from safetensors.torch import save_file

        older = self.there()
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
        save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()}, scratch / STUDENT)
        save_file(_memory(optimiser), scratch / OPTIMISER)
        state = {"epoch": len(losses), "losses": losses}
        (scratch / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        os.rename(scratch, self.folder / f"epoch-{len(losses):05d}")
        for folder in older:
            shutil.rmtree(folder)

    def there(self) -> list[Path]:
        """The folders of checkpoints, the newest last."""
        return sorted(self.folder.glob("epoch-*"))


def _memory(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser remembers, as {"number of the weight.name": tensor}."""
    remembered: Mapping[int, Mapping[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).contiguous()
        for number, values in remembered.items()
        for name, value in values.items()
    }


def _load_memory(optimiser: torch.optim.Optimizer, memory: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in memory.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
