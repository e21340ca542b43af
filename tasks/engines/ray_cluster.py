"""Shards on a Ray cluster: actors that load the model once and take one shard after the other.

This process is the driver. The actors belong to its job, so Ray ends them when it dies, however it dies. Descriptors,
settings (with their secrets) and the news of commits travel through Ray; pixels and rows never do.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from tasks.engines.ray_actor import Introduction, News, ShardActor, this_build
from tasks.errors import (
    LASTING,
    AfterimageError,
    ClusterUnavailable,
    ConfigurationError,
    GlobalFault,
    Interrupted,
    StaleGeneration,
)
from tasks.extras import require
from tasks.plan import ShardDescriptor
from tasks.settings import Settings
from tasks.stopping import sigterm
from tasks.worker import Observe, Progress, no_observation, no_progress

log = logging.getLogger(__name__)

ATTEMPTS = 3
NEWS_SECONDS = 1.0
STOP_SECONDS = 3.0  # Airflow kills a task five seconds after it told it to end.
CONNECT_SECONDS = 10.0
CONNECT_ATTEMPTS = 3
CONNECT_PAUSE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0

# What ray.util.client.server.proxier says where the server that it forked for a client has died.
_SERVER_DIED = ("Starting Ray client server failed", "Proxy failed to Connect to backend")

# No other shard would fare better.
HOPELESS = (*LASTING, GlobalFault, StaleGeneration)


def run_shards(
    shards: Sequence[ShardDescriptor],
    settings: Settings,
    on_progress: Progress = no_progress,
    observe: Observe = no_observation,
    workers: int = 1,
) -> None:
    """Do all shards on the cluster that AFTERIMAGE_RAY_ADDRESS names, on as many actors as it has places for.

    A shard whose actor was lost, or failed in a way that may pass, is given to another one, at most ATTEMPTS times in all.
    Raises the error of the worker as it was, ClusterUnavailable, Interrupted at SIGTERM, or ConfigurationError.
    """
    if not shards:
        return
    with sigterm() as stop, _connected(settings) as ray, sigterm(stop):  # Ray takes SIGTERM for itself as it connects.
        run = _Run(ray, shards, settings, on_progress, observe)
        try:
            run.drive(stop, workers)
        finally:
            run.stop()


@contextmanager
def _connected(settings: Settings) -> Iterator[Any]:
    """Ray, connected to the cluster as the driver of a job of its own."""
    address = settings.ray_address
    if address is None:
        raise ConfigurationError(
            'AFTERIMAGE_RAY_ADDRESS is not set, and this pipeline has engine = "ray". Set it to ray://HEAD:10001, or where a '
            "node of the cluster runs on this machine to HEAD:6379 or auto; docs/scale-out.md shows how to start one."
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # What users predict is their own business.
    ray = require("ray", 'engine = "ray"')
    _check_port(address)
    _init(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, address: str) -> None:
    """Connect. A cluster forks a server for each ray:// client, and that fork sometimes dies: the next one may not."""
    for attempt in range(1, CONNECT_ATTEMPTS + 1):
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
            if attempt == CONNECT_ATTEMPTS or not any(words in str(error) for words in _SERVER_DIED):
                raise _refusal(address, error) from error
            log.warning("The Ray cluster %s could not start a server for this client; trying again", address)
            time.sleep(CONNECT_PAUSE_SECONDS)
        else:
            return


def _check_port(address: str) -> None:
    """Ray itself asks for a minute whether somebody listens."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise _refusal(address, error) from error


def _refusal(address: str, error: BaseException) -> AfterimageError:
    said = (str(error).strip() or type(error).__name__).removesuffix(".") + "."
    if "version" in said.lower():
        return ConfigurationError(
            f"The Ray cluster {address} and this process do not fit together: {said} Install extras/ray.txt and the same "
            "Python on both."
        )
    return ClusterUnavailable(
        f"The Ray cluster {address} cannot be used from here: {said} Start it with ray start --head, or correct "
        "AFTERIMAGE_RAY_ADDRESS. HOST:PORT and auto need a node of the cluster on this machine; ray://HOST:10001 does not. "
        "Where the cluster asks for a token, RAY_AUTH_MODE=token and the same token are needed here."
    )


@dataclass(eq=False)
class _Seat:
    """An actor, and the answer that is awaited from it. It has no place until it has introduced itself."""

    actor: Any
    answer: Any
    place: Introduction | None = None
    shard: ShardDescriptor | None = None


class _Run:
    """The shards of a run, and the actors that they are given to."""

    def __init__(
        self, ray: Any, shards: Sequence[ShardDescriptor], settings: Settings, on_progress: Progress, observe: Observe
    ) -> None:
        self.ray = ray
        self.waiting = deque(shards)
        self.settings = actor_settings(settings)
        self.on_progress = on_progress
        self.observe = observe
        self.seats: list[_Seat] = []
        self.attempts: Counter[int] = Counter()
        self.stillborn = 0
        self.heard = time.monotonic()

    def drive(self, stop: threading.Event, workers: int) -> None:
        """Until every shard is done."""
        places, options = places_of(self.settings.device, self.ray.nodes())
        most = max(workers, places)
        log.info("%d shards on at most %d actors, each with %s", len(self.waiting), most, options)
        actor_class = self.ray.remote(**options)(ShardActor)
        while self.waiting or any(seat.shard for seat in self.seats):
            if stop.is_set():
                raise Interrupted("SIGTERM: what was finished is committed. Clear the task, and it goes on from there.")
            wanted = min(most, len(self.waiting) + sum(seat.shard is not None for seat in self.seats))
            while len(self.seats) < wanted:
                actor = actor_class.remote(self.settings)
                self.seats.append(_Seat(actor, actor.introduce.remote()))
            self._listen(NEWS_SECONDS / 2)
            self._complain(options)

    def stop(self) -> None:
        """Have shards that are still in hand commit, and let go of all actors. Whatever happens here, Ray ends them."""
        busy = [seat for seat in self.seats if seat.shard is not None]
        for seat in busy:
            seat.actor.stop.remote()
        deadline = time.monotonic() + STOP_SECONDS
        while busy and time.monotonic() < deadline:
            ready, _ = self.ray.wait([seat.answer for seat in busy], timeout=max(0.0, deadline - time.monotonic()))
            for seat in [seat for seat in busy if seat.answer in ready]:
                if not self._last_words(seat):
                    busy.remove(seat)
        for seat in list(self.seats):
            self._dismiss(seat)

    def _listen(self, seconds: float) -> None:
        answers = [seat.answer for seat in self.seats]
        self.ray.wait(answers, timeout=seconds)
        # All that are there by now, so that nobody waits long.
        ready, _ = self.ray.wait(answers, num_returns=len(answers), timeout=0)
        for seat in [seat for seat in self.seats if seat.answer in ready]:
            try:
                answer = self.ray.get(seat.answer)
            except self.ray.exceptions.RayError as error:
                self._lose(seat, error)
                continue
            self.heard = time.monotonic()
            if isinstance(answer, News):
                self._hear(seat, answer)
            else:
                self._welcome(seat, answer)

    def _welcome(self, seat: _Seat, place: Introduction) -> None:
        self.stillborn = 0
        seat.place = place
        check_node(place, self.settings)
        self._employ(seat)

    def _employ(self, seat: _Seat) -> None:
        """Give an actor the next shard; where none waits, its place is free for others."""
        if not self.waiting:
            self._dismiss(seat)
            return
        shard = seat.shard = self.waiting.popleft()
        self.attempts[shard.shard] += 1
        seat.actor.start.remote(shard)
        seat.answer = seat.actor.news.remote(NEWS_SECONDS)
        log.info("%s goes to %s", shard.label, seat.place)

    def _hear(self, seat: _Seat, news: News) -> None:
        self._tell(news)
        if not news.ended:
            seat.answer = seat.actor.news.remote(NEWS_SECONDS)
        elif news.error is None:
            seat.shard = None
            self._employ(seat)
        else:
            self._fail(seat, news.error)

    def _tell(self, news: News) -> None:
        for one in news.told:
            if isinstance(one, int):
                self.on_progress(one)
            else:
                self.observe(one)

    def _fail(self, seat: _Seat, error: BaseException) -> None:
        """The worker function raised: another actor may fare better, unless nobody could."""
        shard, seat.shard = seat.shard, None
        assert shard is not None
        log.error("%s failed on %s: %s: %s", shard.label, seat.place, type(error).__name__, error)
        if isinstance(error, HOPELESS) or self.attempts[shard.shard] >= ATTEMPTS:
            raise error
        self._dismiss(seat)  # Its process or its device may be broken.
        self.waiting.append(shard)

    def _lose(self, seat: _Seat, error: Any) -> None:
        """An actor is gone, with its node or alone, or cannot be reached. What its shard has committed stays."""
        self._dismiss(seat)
        shard, seat.shard = seat.shard, None
        if shard is None:
            self._miscarry(error)
            return
        log.warning("%s was lost on %s: %s", shard.label, seat.place, error)
        if self.attempts[shard.shard] >= ATTEMPTS:
            raise ClusterUnavailable(
                f"{shard.label} was lost {ATTEMPTS} times, the last time on {seat.place}: {error} Look at that node's memory "
                "and at its log (ray logs), then clear the task: it goes on after the last commit."
            )
        self.waiting.append(shard)

    def _miscarry(self, error: Any) -> None:
        """An actor died before its first shard. Raises at once where it cannot be made at all."""
        if getattr(error, "actor_init_failed", False):
            raise ConfigurationError(
                f"A node of the Ray cluster cannot load the program: {str(error).strip().splitlines()[-1]} Put the same "
                "checkout or image on every node, and start Ray there with PYTHONPATH set to its folder."
            ) from error
        self.stillborn += 1
        log.warning("An actor died before its first shard: %s", error)
        if self.stillborn >= ATTEMPTS:
            raise ClusterUnavailable(
                f"{ATTEMPTS} actors died before their first shard: {error} Look at the nodes' logs (ray logs)."
            ) from error

    def _last_words(self, seat: _Seat) -> bool:
        """Hear a stopping actor out; whether it has more to say."""
        try:
            news = self.ray.get(seat.answer)
        except self.ray.exceptions.RayError:
            return False
        self._tell(news)
        seat.answer = seat.actor.news.remote(NEWS_SECONDS)
        return not news.ended

    def _dismiss(self, seat: _Seat) -> None:
        self.seats.remove(seat)
        self.ray.kill(seat.actor)

    def _complain(self, options: dict[str, Any]) -> None:
        """Say that nothing happens because no actor has found a place."""
        if time.monotonic() - self.heard < PATIENCE_SECONDS or any(seat.place for seat in self.seats):
            return
        self.heard = time.monotonic()
        log.warning(
            "No actor has a place yet: each needs %s, and of %s these are free: %s. Add nodes, or end what occupies them.",
            *(options, self.ray.cluster_resources(), self.ray.available_resources()),
        )


def actor_settings(settings: Settings) -> Settings:
    """The driver's settings, complete: an actor must not take from its node's environment what decides a run."""
    device = "cuda" if settings.device.startswith("cuda") else settings.device  # Ray shows an actor its own GPU alone.
    # The default cache lies under `home`, which is the node's own.
    return settings.model_copy(update={"device": device, "database": SecretStr(settings.database_url)})


def places_of(device: str, nodes: Sequence[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """How many actors find a place, and what each asks for: a GPU; or where there is none, a whole node.

    A worker's threads use all cores of its machine, so one for each node is enough.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(one.get("GPU", 0) for one in resources))
    if device.startswith("cuda") or (device == "auto" and gpus):
        return gpus, {"num_gpus": 1, "num_cpus": 1}
    cpus = [int(one["CPU"]) for one in resources if one.get("CPU", 0) >= 1]
    return len(cpus), {"num_cpus": min(cpus, default=1), "scheduling_strategy": "SPREAD"}


def check_node(place: Introduction, settings: Settings) -> None:
    """Raises ConfigurationError where a node has other programs, or cannot reach the cache."""
    if place.build != this_build():
        raise ConfigurationError(
            f"{place} of the Ray cluster has {place.build}; this process has {this_build()}. Give all the same checkout or "
            "image."
        )
    if settings.database_url.startswith("sqlite") and place.host != socket.gethostname():
        raise ConfigurationError(
            f"The cache is SQLite, which is for one host, and {place} of the Ray cluster is another one. Set "
            "AFTERIMAGE_DATABASE to a PostgreSQL database."
        )
