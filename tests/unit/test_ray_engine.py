"""What the Ray engine decides without a cluster: addresses, places, settings of an actor, and who fits together."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.engines import engine_of, local, ray_cluster
from tasks.engines.ray_actor import Build, Introduction, ShardActor, portable, this_build
from tasks.errors import ClusterUnavailable, ConfigurationError, ImageError, Interrupted, ModelChanged
from tasks.pipelines import Pipeline
from tasks.plan import ShardDescriptor
from tasks.settings import load_settings
from tests.conftest import ROOT, free_port, outer_environment
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

SHARD = ShardDescriptor(1, 1, 0, 1, 5, "in", "file", ("model",), (), "id", 1, 100, False, "postgresql afterimage")


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "10.0.0.1:6379", "[::1]:6379"])
def test_an_address_of_a_cluster(address: str) -> None:
    assert load_settings(ray_address=address).ray_address == address


@pytest.mark.parametrize("address", ["head", "local", "ray://head", "http://head:8265", "ray://head:10001/", "a b:1"])
def test_another_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="AFTERIMAGE_RAY_ADDRESS is "):
        load_settings(ray_address=address)


def test_without_an_address_it_is_said_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"AFTERIMAGE_RAY_ADDRESS is not set.*ray://HEAD:10001"):
        ray_cluster.run_shards([SHARD], load_settings())


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r'engine = "ray" needs the package ray.*make extra-ray'):
        ray_cluster.run_shards([SHARD], load_settings(ray_address="auto"))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_worth_another_try(scheme: str) -> None:
    pytest.importorskip("ray")
    settings = load_settings(ray_address=f"{scheme}127.0.0.1:{free_port()}")
    with pytest.raises(ClusterUnavailable, match=r"cannot be used from here: .*refused\. Start it"):
        ray_cluster.run_shards([SHARD], settings)


def test_no_shard_needs_no_cluster() -> None:
    ray_cluster.run_shards([], load_settings())


@pytest.mark.parametrize(
    ("device", "nodes", "places", "wants"),
    [
        ("auto", [{"CPU": 8, "GPU": 2}, {"CPU": 64, "GPU": 8}, {"CPU": 4}], 10, {"num_gpus": 1, "num_cpus": 1}),
        ("cuda", [{"CPU": 4}], 0, {"num_gpus": 1, "num_cpus": 1}),
        ("cpu", [{"CPU": 8, "GPU": 2}, {"CPU": 4}, {}], 2, {"num_cpus": 4, "scheduling_strategy": "SPREAD"}),
        ("auto", [{"CPU": 0.0}, {"CPU": 16.0}], 1, {"num_cpus": 16, "scheduling_strategy": "SPREAD"}),
        ("auto", [], 0, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}),
    ],
)
def test_an_actor_has_a_gpu_or_a_node(device: str, nodes: list[Any], places: int, wants: dict[str, Any]) -> None:
    alive = [{"Alive": True, "Resources": resources} for resources in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 1, "GPU": 4}}
    assert ray_cluster.places_of(device, [*alive, gone]) == (places, wants)


def test_an_actor_has_the_drivers_cache_and_secrets_and_its_own_gpu(tmp_path: Path) -> None:
    given = load_settings(home=tmp_path, device="cuda:3", s3_secret_key="secret")
    found = ray_cluster.actor_settings(given)
    assert (found.device, found.database_url) == ("cuda", given.database_url)
    assert found.s3_secret_key is not None
    assert found.s3_secret_key.get_secret_value() == "secret"
    assert ray_cluster.actor_settings(load_settings(device="auto")).device == "auto"


def test_a_node_with_another_program_or_another_host_is_refused() -> None:
    here = Introduction(socket.gethostname(), "0123456789", this_build())
    sqlite, postgres = load_settings(), load_settings(database="postgresql://user:password@host/name")
    ray_cluster.check_node(here, sqlite)
    elsewhere = replace(here, host="elsewhere")
    ray_cluster.check_node(elsewhere, postgres)
    with pytest.raises(ConfigurationError, match=r"SQLite.*elsewhere \(node 01234567\).*PostgreSQL"):
        ray_cluster.check_node(elsewhere, sqlite)
    old = replace(here, build=replace(here.build, program="0123"))
    with pytest.raises(ConfigurationError, match=r"the program 0123; this process has Python 3.* same checkout"):
        ray_cluster.check_node(old, postgres)


def test_two_states_of_the_program_are_two_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    monkeypatch.setattr("tasks.engines.ray_actor.PROJECT", tmp_path)
    builds: list[Build] = []
    for text in ("a = 1", "a = 2", "a = 2"):
        (tmp_path / "tasks" / "worker.py").write_text(text)
        builds.append(this_build())
    assert builds[0] != builds[1] == builds[2]


def test_errors_travel_with_their_traceback_or_by_their_name() -> None:
    found = portable(ModelChanged("Bring it back."))
    assert (type(found), str(found)) == (ModelChanged, "Bring it back.")
    assert "ModelChanged: Bring it back." in found.__notes__[0]
    found = portable(ImageError("truncated", "It ends early."))  # its constructor wants more than it tells pickle
    assert (type(found), str(found)) == (RuntimeError, "ImageError: It ends early.")


def test_a_pipeline_names_its_engine() -> None:
    table = {"name": "photos", "images": "in", "model": "model"}
    assert engine_of(Pipeline(**table)) is local.run_shards
    on_ray: Any = engine_of(Pipeline(**table, engine="ray", workers=4))
    assert (on_ray.func, on_ray.keywords) == (ray_cluster.run_shards, {"workers": 4})


def test_neither_the_road_nor_the_engine_imports_ray_before_it_is_needed() -> None:
    code = "import sys, tasks.road, tasks.engines.ray_cluster; print('ray' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=outer_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_an_actor_tells_of_its_commits_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "images", 20)
    table = {"images": str(tmp_path / "images"), "model": str(write_small_bundle(tmp_path / "model"))}
    runner = Runner(tmp_path / "driver", f"sqlite:///{tmp_path / 'cache.db'}", workers=2, **table)
    _, shards = runner.plan()
    monkeypatch.setenv("AFTERIMAGE_HOME", str(tmp_path / "node"))
    actor = ShardActor(ray_cluster.actor_settings(runner.settings))

    def until_the_end(shard: ShardDescriptor) -> tuple[list[Any], BaseException | None]:
        actor.start(shard)
        told: list[Any] = []
        while not (news := actor.news(5.0)).ended:
            told += news.told
        return [*told, *news.told], news.error

    told, error = until_the_end(shards[0])
    assert error is None
    assert sum(one for one in told if isinstance(one, int)) == 10
    assert [one.outcomes for one in told if not isinstance(one, int)] == [{"predicted": 10}]
    assert (tmp_path / "node" / "compiled").exists()
    assert not (tmp_path / "driver" / "compiled").exists()

    actor.stop()
    told, error = until_the_end(shards[1])
    assert isinstance(error, Interrupted)
    assert sum(one for one in told if isinstance(one, int)) < 10


class Cluster:
    """A cluster that answers so many connections with an error, and any other with a connection."""

    def __init__(self, said: str, errors: int) -> None:
        self.said, self.errors, self.asked = said, errors, 0

    def init(self, _address: str, **_options: Any) -> None:
        self.asked += 1
        if self.asked <= self.errors:
            raise RuntimeError(self.said)


DIED = "Initialization failure from server: Starting Ray client server failed. See ray_client_server_23000.err"


@pytest.mark.parametrize(
    ("cluster", "asked", "is_connected"),
    [
        (Cluster(DIED, 2), 3, True),
        (Cluster(DIED, 3), 3, False),
        (Cluster("Proxy failed to Connect to backend!", 1), 2, True),
        (Cluster("Invalid auth token", 1), 1, False),
    ],
    ids=["the server died twice", "it always dies", "the server was slow", "another fault"],
)
def test_a_server_that_died_as_it_was_forked_is_asked_for_again(
    cluster: Cluster, asked: int, is_connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "CONNECT_PAUSE_SECONDS", 0.0)
    if is_connected:
        ray_cluster._init(cluster, "ray://head:10001")
    else:
        with pytest.raises(ClusterUnavailable, match=cluster.said):
            ray_cluster._init(cluster, "ray://head:10001")
    assert cluster.asked == asked
