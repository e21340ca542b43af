"""Shards on a real Ray cluster: two nodes, lost nodes, killed drivers, and errors that come back as they were."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tasks import road
from tasks.cache.database import connect
from tasks.engines import ray_cluster
from tasks.errors import ClusterUnavailable, ConfigurationError, DatabaseUnavailable, GlobalFault, ModelChanged
from tasks.observation import Observation
from tests.conftest import outer_environment, wait_until
from tests.pictures import picture, write_small_bundle
from tests.ray_nodes import Nodes, ray_nodes
from tests.runner import Runner, outcomes

pytestmark = pytest.mark.alone

pytest.importorskip("ray")

IMAGES, SHARDS, COMMIT = 120, 6, 4


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with ray_nodes(2, tmp_path_factory.mktemp("node")) as found:
        yield found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two megapixels: a shard takes most of a second, so that there is time to kill somebody.

    What follows a JPEG changes its digest, and none of its pixels.
    """
    folder = tmp_path_factory.mktemp("images")
    shown = [picture(number, (1600, 1200), "JPEG") for number in range(SHARDS)]
    for number in range(IMAGES):
        (folder / f"{number:05}.jpg").write_bytes(shown[number % SHARDS] + number.to_bytes(4, "big"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def calm(home: Path, images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of a run in a single process."""
    url = f"sqlite:///{tmp_path_factory.mktemp('calm') / 'cache.db'}"
    runner = Runner(home, url, images=str(images), model=str(model))
    runner.run()
    return runner.predictions()


@pytest.fixture
def runner(nodes: Nodes, images: Path, model: Path, tmp_path: Path, postgres_url: str) -> Runner:
    """A pipeline whose shards go to the cluster, over PostgreSQL; `tmp_path` is the driver's home."""
    table = {"images": str(images), "model": str(model), "workers": SHARDS, "commit_images": COMMIT, "engine": "ray"}
    return Runner(tmp_path / "home", postgres_url, {"ray_address": nodes.address}, **table)


def run(runner: Runner, on_progress: Callable[[int], None], observe: Callable[[Observation], None]) -> dict[str, Any]:
    engine = ray_cluster.run_shards
    return road.run(
        runner.request(), runner.settings, on_progress=on_progress, engine_of_shards=engine, observe=observe
    )


def leave_some_for(node: str, caplog: pytest.LogCaptureFixture) -> None:
    """Hold the driver up, commit by commit, while a node has not got its first shard."""
    if node not in {given for _, given in placed(caplog)}:
        time.sleep(0.5)


def placed(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """(shard, node) of every shard that was given to an actor, in order."""
    given = [record.args for record in caplog.records if "goes to" in record.msg]
    return [(int(label.split("/")[0].removeprefix("shard ")) - 1, place.node) for label, place in given]  # type: ignore


@contextmanager
def handler(one: logging.Handler) -> Iterator[None]:
    """Let it hear what the engine logs, after caplog did."""
    logger = logging.getLogger("tasks.engines")
    logger.addHandler(one)
    try:
        yield
    finally:
        logger.removeHandler(one)


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.engines")


def test_two_nodes_give_the_rows_of_one_process(
    runner: Runner, nodes: Nodes, calm: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    progress: list[int] = []
    observed: Counter[str] = Counter()

    def advance(images: int) -> None:
        for node in nodes.nodes:
            leave_some_for(node.node_id, caplog)
        progress.append(images)

    counts = run(runner, advance, lambda one: observed.update(one.outcomes))

    assert runner.predictions() == calm
    assert (counts["predicted"], counts["forward_passes"], counts["reads"]) == (IMAGES, IMAGES, IMAGES)
    assert (sum(progress), observed) == (IMAGES, {"predicted": IMAGES})
    assert len(progress) >= IMAGES // COMMIT / 2, "progress comes with the commits"
    given = placed(caplog)
    assert sorted(shard for shard, _ in given) == list(range(SHARDS))
    assert {node for _, node in given} == {node.node_id for node in nodes.nodes}
    assert not (tmp_path / "home" / "compiled").exists(), "networks are converted in the homes of the nodes"
    wait_until(lambda: not nodes.actors(), 5, "the end of the actors")


def test_a_node_that_is_killed_costs_its_open_batch(
    runner: Runner, nodes: Nodes, calm: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add()
    victim = nodes.nodes[-1].node_id
    states = "SELECT shard, count(outcome) done, count(*) - count(outcome) open FROM work_item GROUP BY shard"
    last = "SELECT key FROM afterimage.work_item WHERE shard = :shard AND outcome IS NULL ORDER BY key DESC LIMIT 1 FOR UPDATE"
    lost: dict[str, Any] = {}

    def strike(_images: int) -> None:
        leave_some_for(victim, caplog)
        shard = next((shard for shard, node in placed(caplog) if node == victim), None)
        if shard is None or lost:
            return
        row = next(row for row in runner.rows(states) if row["shard"] == shard)
        if row["done"]:
            nodes.kill(-1)
            # What it committed in its last moment is known now.
            lost.update(next(one for one in runner.rows(states) if one["shard"] == shard))
            lost["rows"] = runner.rows("SELECT digest, predicted_at FROM prediction")
            holder.rollback()

    class Holder(logging.Handler):
        """Locks the last image of the victim's first shard as the shard is given away: it cannot be over before the blow."""

        def emit(self, record: logging.LogRecord) -> None:
            given = placed(caplog)
            if "goes to" in record.msg and [node for _, node in given].count(victim) == 1 and given[-1][1] == victim:
                assert holder.execute(text(last), {"shard": given[-1][0]}).one()

    engine = connect(runner.settings.database_url)
    with engine.connect() as holder, handler(Holder()):
        counts = run(runner, strike, lambda _one: None)
    engine.dispose()

    assert lost["done"] > 0, "it had committed"
    assert lost["open"] > 0, "it had more to do"
    assert runner.predictions() == calm
    assert outcomes(counts) == {"predicted": IMAGES}
    assert 0 <= counts["forward_passes"] - IMAGES <= lost["open"]
    kept = runner.rows("SELECT digest, predicted_at FROM prediction")
    assert all(row in kept for row in lost["rows"])
    given = placed(caplog)
    again = [node for shard, node in given if shard == lost["shard"]]
    assert again[0] == victim
    assert again[1] != victim
    assert Counter(shard for shard, _ in given).total() == SHARDS + 1, "no other shard was given twice"
    assert {node for _, node in given} == {node.node_id for node in nodes.nodes}


def pipelines_file(folder: Path, images: Path, model: Path) -> Path:
    path = folder / "pipelines.toml"
    table = {"images": str(images), "model": str(model), "engine": "ray"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path.write_text("\n".join(["[photos]", *lines, f"workers = {SHARDS}", f"commit_images = {COMMIT}"]))
    return path


@pytest.fixture
def driver(runner: Runner, nodes: Nodes, images: Path, model: Path, tmp_path: Path) -> Callable[..., Any]:
    """The command line in a process of its own; keyword arguments change its environment."""

    def start(**changes: str) -> subprocess.Popen[str]:
        environment = outer_environment(
            AFTERIMAGE_PIPELINES=str(pipelines_file(tmp_path, images, model)),
            AFTERIMAGE_HOME=str(tmp_path / "home"),
            AFTERIMAGE_DATABASE=runner.settings.database_url,
            **{"AFTERIMAGE_RAY_ADDRESS": nodes.address, **changes},
        )
        command = [sys.executable, "-m", "tasks", "predict", "photos", "--json"]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    return start


def committed(runner: Runner) -> int:
    return int(runner.rows("SELECT count(outcome) done FROM work_item")[0]["done"])


def test_the_command_line_reaches_a_cluster_that_it_is_no_part_of(
    driver: Callable[..., Any], runner: Runner, nodes: Nodes, calm: dict[str, Any]
) -> None:
    process = driver(AFTERIMAGE_RAY_ADDRESS=nodes.client_address)
    out, errors = process.communicate(timeout=240)

    assert process.returncode == 0, errors
    assert json.loads(out)["predicted"] == IMAGES
    assert runner.predictions() == calm
    wait_until(lambda: not nodes.actors(), 20, "the end of the actors")


def test_who_has_another_token_is_kept_out_and_told_why(driver: Callable[..., Any], nodes: Nodes) -> None:
    _, errors = (process := driver(RAY_AUTH_TOKEN="0" * 32)).communicate(timeout=240)

    assert process.returncode == 2
    assert f"The Ray cluster {nodes.address} cannot be used from here" in errors
    assert "RAY_AUTH_MODE=token and the same token" in errors


def test_a_killed_driver_takes_its_actors_with_it(
    driver: Callable[..., Any], runner: Runner, nodes: Nodes, calm: dict[str, Any]
) -> None:
    process = driver()
    wait_until(lambda: committed(runner) > 0, 60, "a commit")
    assert nodes.actors()
    process.kill()
    process.communicate()

    seconds = wait_until(lambda: not nodes.actors(), 20, "the end of the actors")
    print(f"the actors ended {seconds:.1f} s after their driver")
    assert 0 < committed(runner) < IMAGES
    run(runner, lambda _images: None, lambda _one: None)
    assert runner.predictions() == calm


def test_a_driver_that_is_told_to_end_has_its_actors_commit(
    driver: Callable[..., Any], runner: Runner, nodes: Nodes
) -> None:
    process = driver()
    wait_until(lambda: committed(runner) > 0, 60, "a commit")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)

    assert process.returncode == 2
    assert "SIGTERM: what was finished is committed" in errors
    wait_until(lambda: not nodes.actors(), 5, "the end of the actors")
    counts = runner.rows("SELECT state, open, predicted, forward_passes FROM v_run")[0]
    assert counts["state"] == "failed"
    assert 0 < counts["predicted"] < IMAGES
    assert counts["open"] == IMAGES - counts["predicted"]


def test_an_error_that_lasts_comes_back_as_it_was_and_ends_all(
    runner: Runner, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "model"
    shutil.copytree(model, other)
    runner.pipeline = runner.pipeline.model_copy(update={"model": str(other)})
    _, shards = runner.plan()
    write_small_bundle(other, seed=1)

    with pytest.raises(ModelChanged, match=r"has the fingerprint .* Bring back that bundle") as raised:
        ray_cluster.run_shards(shards, runner.settings)
    assert type(raised.value) is ModelChanged
    assert "_frozen_model" in "".join(raised.value.__notes__), "where it was raised is told"
    assert len(placed(caplog)) < SHARDS
    assert committed(runner) == 0


def test_a_broken_model_is_a_global_fault(runner: Runner, model: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(model, broken)
    weights = broken / "weights.safetensors"
    save_file({name: np.full_like(value, 3e38) for name, value in load_file(weights).items()}, weights)
    runner.pipeline = runner.pipeline.model_copy(update={"model": str(broken)})

    _, shards = runner.plan()
    with pytest.raises(GlobalFault, match="not finite even for a blank image"):
        ray_cluster.run_shards(shards[:1], runner.settings)
    assert runner.rows("SELECT * FROM v_failure") == []


def test_what_may_pass_is_tried_on_other_actors_and_then_raised(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    _, shards = runner.plan()
    astray = replace(shards[0], cache="postgresql elsewhere")

    with pytest.raises(DatabaseUnavailable, match="postgresql elsewhere"):
        ray_cluster.run_shards([astray, *shards[1:3]], runner.settings)
    given = Counter(shard for shard, _ in placed(caplog))
    assert given == {0: ray_cluster.ATTEMPTS, 1: 1, 2: 1}
    assert committed(runner) > 0, "the others went on"


def test_a_shard_that_is_lost_again_and_again_ends_the_run(
    runner: Runner, nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    """As where each worker runs out of memory."""

    class Killer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "goes to" in record.msg:
                for process in nodes.actors():
                    process.kill()

    _, shards = runner.plan()
    with (
        handler(Killer()),
        pytest.raises(ClusterUnavailable, match=r"shard 1/6 .* was lost 3 times, the last time on .* \(node "),
    ):
        ray_cluster.run_shards(shards[:1], runner.settings)
    assert [shard for shard, _ in placed(caplog)] == [0, 0, 0]


def test_nodes_without_the_program_are_told_of(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = types.ModuleType("absent_program")
    absent.ShardActor = type("ShardActor", (ray_cluster.ShardActor,), {"__module__": "absent_program"})  # type: ignore
    monkeypatch.setitem(sys.modules, "absent_program", absent)
    monkeypatch.setattr(ray_cluster, "ShardActor", absent.ShardActor)
    _, shards = runner.plan()

    with pytest.raises(ConfigurationError, match=r"cannot load the program: .*absent_program.* Put the same checkout"):
        ray_cluster.run_shards(shards, runner.settings)
