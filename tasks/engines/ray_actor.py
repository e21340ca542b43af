"""What a node of a Ray cluster runs: an actor that holds a Worker, does shards and tells the driver of every commit.

The driver is ray_cluster.py. Ray makes an actor of an ordinary class, so nothing here imports Ray before it runs.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import queue
import socket
import threading
import traceback
from dataclasses import dataclass
from importlib.metadata import version

from tasks.observation import Observation
from tasks.plan import ShardDescriptor
from tasks.settings import PROJECT, Settings, load_settings
from tasks.worker import Worker


@dataclass(frozen=True)
class Build:
    """What must be the same on every node, because shards and settings travel as Python objects."""

    python: str
    ray: str
    program: str

    def __str__(self) -> str:
        return f"Python {self.python}, ray {self.ray} and the program {self.program}"


@dataclass(frozen=True)
class Introduction:
    """Where an actor came to be: its machine, its node in the cluster, and what is installed there."""

    host: str
    node: str
    build: Build

    def __str__(self) -> str:
        return f"{self.host} (node {self.node[:8]})"


@dataclass(frozen=True)
class News:
    """What happened since the driver last asked: images that commits closed, and what they observed, in order.

    `ended` says that the shard is over; `error` is what ended it.
    """

    told: tuple[int | Observation, ...]
    ended: bool = False
    error: BaseException | None = None


class ShardActor:
    """One shard at a time in a thread of its own, so that the driver can ask and stop while it works."""

    def __init__(self, settings: Settings) -> None:
        # Models are converted and kept where this node keeps files; all else is as the driver has it.
        self._worker = Worker(settings.model_copy(update={"home": load_settings().home}))
        self._told: queue.SimpleQueue[int | Observation | News] = queue.SimpleQueue()

    def introduce(self) -> Introduction:
        """Where this actor runs."""
        import ray

        return Introduction(socket.gethostname(), ray.get_runtime_context().get_node_id(), this_build())

    def start(self, shard: ShardDescriptor) -> None:
        """Begin a shard."""
        threading.Thread(target=self._predict, args=(shard,), name="shard").start()

    def news(self, seconds: float) -> News:
        """What is new; waits at most so many seconds for it."""
        told: list[int | Observation] = []
        while True:
            try:
                one = self._told.get(timeout=seconds if not told else 0)
            except queue.Empty:
                return News(tuple(told))
            if isinstance(one, News):
                return News(tuple(told), one.ended, one.error)
            told.append(one)

    def stop(self) -> None:
        """Commit what is finished, and end."""
        self._worker.stop()

    def _predict(self, shard: ShardDescriptor) -> None:
        error: BaseException | None = None
        try:
            self._worker.predict(shard, self._told.put, observe=self._told.put)
        except BaseException as found:  # Whatever it is, the driver decides what follows.
            error = portable(found)
        self._told.put(News((), ended=True, error=error))


def this_build() -> Build:
    """What is installed here. The program is named by its files: two states of one version are not the same."""
    digest = hashlib.sha256()
    for path in sorted((PROJECT / "tasks").rglob("*.py")):
        digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    return Build(python, version("ray"), digest.hexdigest()[:12])


def portable(error: BaseException) -> BaseException:
    """The error as another process can have it: with its traceback as a note, and by its name where it cannot travel."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own, made on the line itself
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
