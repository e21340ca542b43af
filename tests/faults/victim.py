"""The program in a process of its own, which dies at a chosen call: of a signal, or because no memory is left.

A process that has imported the program already forks the victims, so that each takes a part of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import traceback
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy.engine.default import DefaultDialect

# What a shard imports on its way, so that the process that forks the victims has it already.
import tasks.inference.shard
import tasks.models.runtimes.openvino_runtime
from tasks import road
from tasks.cache import commits, ledger
from tasks.cache.runs import RunKey
from tasks.inference import chain, decode_stage, forward_stage
from tasks.plan import ShardDescriptor
from tests.runner import Runner

OpenVinoRuntime = tasks.models.runtimes.openvino_runtime.OpenVinoRuntime

POINTS: dict[str, tuple[Any, str, bool]] = {
    "before the read": (chain, "read_object", False),
    "after the read": (chain, "read_object", True),
    "in the look-up": (ledger, "predicted_digests", False),
    "in the decoder": (decode_stage.DecodeStage, "decode", False),
    "in the forward pass": (OpenVinoRuntime, "predict", False),
    "after the forward pass": (forward_stage, "score", True),
    "after the upsert, inside the transaction": (commits, "_close_rows", True),
    "between commit and acknowledgement": (DefaultDialect, "do_commit", True),
    "after the commit": (commits, "commit", True),
}
"""Where a victim may die: at which function, and whether that does its work first."""

SIGKILL, SIGTERM, MEMORY = "SIGKILL", "SIGTERM", "out of memory"
"""What the kernel does to a process when the machine is out of memory is SIGKILL; MEMORY is what a limit does to it."""

PIECE = 2**16
_taken: list[bytearray] = []


@dataclass(frozen=True)
class Ended:
    """How a victim ended: whether its fault struck, its exit code (a negative one is a signal's), and its last words."""

    struck: bool
    code: int | None
    error: str


@dataclass(frozen=True)
class Fate:
    """At which call, counted from 1 over all threads, of which function a victim dies, and how."""

    death: str
    point: str
    fatal: int


CALM = Fate(SIGKILL, "before the read", 10**9)
"""Of a process that is left to itself."""


def end_victim(
    runner: Runner, folder: Path, fate: Fate, task: RunKey | ShardDescriptor, seconds: float = 120.0
) -> Ended:
    """Run the whole road under a key, or a shard as Airflow's task does; the files of a victim lie in `folder`."""
    died, words = folder / "died", folder / "last-words"
    for file in (died, words):
        file.unlink(missing_ok=True)
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([__name__])
    victim = forking.Process(target=_live, args=(runner, folder, fate, task))
    victim.start()
    victim.join(seconds)
    if victim.is_alive():
        victim.kill()
        victim.join()
        raise AssertionError(f"{fate} hung: neither dead nor done after {seconds} s")
    return Ended(died.exists(), victim.exitcode, words.read_text() if words.exists() else "")


def _live(runner: Runner, folder: Path, fate: Fate, task: RunKey | ShardDescriptor) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    _doom(fate, folder)
    try:
        if isinstance(task, RunKey):
            runner.run(key=task)
        else:
            road.predict_shard(task, runner.settings)
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        _taken.clear()
        (folder / "last-words").write_text("".join(traceback.format_exception(error)))
        sys.exit(1)


def _doom(fate: Fate, folder: Path) -> None:
    """Put the fatal call in the place of a function."""
    owner, name, after = POINTS[fate.point]
    function, calls = getattr(owner, name), count(1)

    def call(*arguments: Any, **named: Any) -> Any:
        last = next(calls) == fate.fatal
        if last and not after:
            _die(fate.death, folder)
        result = function(*arguments, **named)
        if last and after:
            _die(fate.death, folder)
        return result

    setattr(owner, name, call)


def _die(death: str, folder: Path) -> None:
    (folder / "died").write_text(death)
    if death in (SIGKILL, SIGTERM):
        os.kill(os.getpid(), getattr(signal, death))
        return
    _run_out_of_memory()


def _run_out_of_memory() -> None:
    """Bound this process's memory to what it has, and take pieces until there are none. Raises MemoryError.

    They stay taken: whatever asks for memory while the error is on its way is refused as well.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while True:
        _taken.append(bytearray(PIECE))
