"""`./afterimage predict --workers N`: processes that torchrun starts share a run, and any of them may be killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from tasks import road
from tasks.engines import processes
from tasks.errors import ModelChanged, WorkersLost
from tests.conftest import ROOT, outer_environment, wait_until
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

pytestmark = pytest.mark.alone

IMAGES = 80
COMMIT = 5
BATCH = 4

# A rank whose forward passes take as long as those of a slow network: a run must last until somebody is killed.
SLOW = """
import time
from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime
predict = OpenVinoRuntime.predict
OpenVinoRuntime.predict = lambda *given: (time.sleep(0.1), predict(*given))[1]
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", IMAGES)
    return tmp_path / "images"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "model")


@pytest.fixture
def slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python that starts from here on is a slow one."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import sys\nif 'tasks.engines.rank' in sys.orig_argv:\n" + _indented(SLOW)
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "slow"), str(ROOT)]))


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


def single(tmp_path: Path, home: Path, images: Path, model: Path) -> dict[str, tuple[str, str, str, str, float]]:
    """The rows of one process that nobody disturbed."""
    runner = Runner(home, f"sqlite:///{tmp_path / 'single.db'}", images=str(images), model=str(model))
    assert outcomes(runner.run()) == {"predicted": IMAGES}
    return runner.predictions()


def test_two_workers_give_the_rows_of_one_and_both_did_shards(
    tmp_path: Path, home: Path, images: Path, model: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(home, database_url, images=str(images), model=str(model), workers=6)
    closed, devices = [], set()
    listening: set[str] = set()

    def look(images: int) -> None:
        closed.append(images)
        listening.update(addresses_listened_on())

    with caplog.at_level(logging.INFO):
        counts = road.run(
            runner.request(),
            runner.settings,
            on_progress=look,
            engine_of_shards=partial(processes.run_shards, workers=2),
            observe=lambda observation: devices.add(observation.device),
        )
    assert outcomes(counts) == {"predicted": IMAGES}
    assert counts["forward_passes"] == IMAGES
    assert runner.predictions() == single(tmp_path, home, images, model)
    assert sum(closed) == IMAGES, "every commit was told of"
    assert len(devices) == 1
    assert listening == {"127.0.0.1"}, "nobody else's machine reaches the workers"
    done = [record.message for record in caplog.records if record.name == processes.__name__]
    assert len(done) == 6
    assert {message.split(":")[0] for message in done} == {"worker 0", "worker 1"}


def test_a_killed_worker_costs_its_open_batch_only(
    tmp_path: Path, home: Path, images: Path, model: Path, slowly: None, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(
        home,
        f"sqlite:///{tmp_path / 'killed.db'}",
        {"batch_size": BATCH, "queue_mib": 1},
        images=str(images),
        model=str(model),
        workers=2,
        commit_images=COMMIT,
    )
    seen = []

    def kill_once(_images: int) -> None:
        if not seen:
            victim = ranks()[0]
            seen.append(len(runner.predictions()))
            victim.kill()

    counts = road.run(
        runner.request(),
        runner.settings,
        on_progress=kill_once,
        engine_of_shards=partial(processes.run_shards, workers=2),
    )
    assert 0 < seen[0] < IMAGES, "something was committed, and something was open"
    assert outcomes(counts) == {"predicted": IMAGES}
    assert runner.predictions() == single(tmp_path, home, images, model)


def test_a_worker_that_always_dies_ends_the_run_with_what_torchrun_said(
    tmp_path: Path, home: Path, images: Path, model: Path, slowly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "RESTARTS", 0)
    runner = Runner(
        home, f"sqlite:///{tmp_path / 'c.db'}", images=str(images), model=str(model), workers=2, commit_images=COMMIT
    )
    with pytest.raises(WorkersLost, match=r"(?s)exitcode +: -9.*fewer --workers"):
        road.run(
            runner.request(),
            runner.settings,
            on_progress=lambda _images: [rank.kill() for rank in ranks()][:0],
            engine_of_shards=partial(processes.run_shards, workers=2),
        )
    assert ranks() == []
    assert outcomes(runner.run())["predicted"] < IMAGES, "what was committed is not predicted again"


def test_an_error_of_a_worker_comes_back_as_its_own_class_and_stops_the_others(
    tmp_path: Path, home: Path, images: Path, model: Path, slowly: None
) -> None:
    runner = Runner(home, f"sqlite:///{tmp_path / 'c.db'}", images=str(images), model=str(model), workers=2)
    _, (first, second) = runner.plan()
    with pytest.raises(ModelChanged, match="at deduplicate"):
        processes.run_shards(
            [first, replace(second, model_id="0" * 64)],
            runner.settings,
            lambda _images: None,
            lambda _observation: None,
            workers=2,
        )
    assert ranks() == []
    assert len(runner.predictions()) < IMAGES


@pytest.mark.parametrize(("number", "committed"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_whatever_ends_the_command_line_ends_its_workers(
    tmp_path: Path, images: Path, model: Path, slowly: None, number: signal.Signals, committed: bool
) -> None:
    database = f"sqlite:///{tmp_path / 'c.db'}"
    command = [sys.executable, "-m", "tasks", "predict", "--images", str(images), "--model", str(model)]
    environment = {
        **outer_environment(AFTERIMAGE_HOME=str(tmp_path), AFTERIMAGE_DATABASE=database, AFTERIMAGE_BATCH_SIZE="4"),
        "PYTHONPATH": os.environ["PYTHONPATH"],
    }
    # As a terminal starts it: what runs in the background is born deaf to Ctrl-C, and its children with it.
    run = subprocess.Popen(
        [*command, "--workers", "2"],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: len(ranks(run.pid)) == 2 and (tmp_path / "compiled").is_dir(), 60, "two workers at work")
    started = ranks(run.pid)
    time.sleep(0.5)
    os.killpg(run.pid, number)  # Ctrl-C reaches every process of a terminal's group.
    _, said = run.communicate(timeout=60)
    wait_until(lambda: not any(rank.is_running() for rank in started), 30, "the end of the workers")

    again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True)
    counts = json.loads(again.stdout)
    assert counts["cached"] + counts["predicted"] == IMAGES
    if committed:
        assert run.returncode != 0
        assert counts["cached"] > 0, said


def ranks(parent: int | None = None) -> list[psutil.Process]:
    """The workers below a process of ours."""
    below = psutil.Process(parent or os.getpid()).children(recursive=True)
    return [child for child in below if _is_rank(child)]


def addresses_listened_on() -> set[str]:
    """Addresses on which this process and those below it wait for others."""
    mine = psutil.Process()
    found = [each.net_connections("inet") for each in [mine, *mine.children(recursive=True)]]
    return {one.laddr.ip for connections in found for one in connections if one.status == psutil.CONN_LISTEN}


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "tasks.engines.rank" in process.cmdline() and "torch.distributed.run" not in process.cmdline()
    except psutil.Error:
        return False
