"""Shards in several processes of this machine, which torchrun starts and watches: one for each GPU, or on its cores.

torchrun (torch.distributed.run) starts the group anew when one of its processes is killed, at most RESTARTS times; the
rows that were committed stay, so only the open batches are predicted again. No tensor passes between the processes: of
torch.distributed they use the launcher and the store (board.py).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import errors
from tasks.errors import AfterimageError, WorkersLost
from tasks.observation import Observation
from tasks.plan import ShardDescriptor
from tasks.settings import PROJECT, Settings, environment_of
from tasks.worker import Observe, Progress

if TYPE_CHECKING:
    from tasks.engines.board import Board

log = logging.getLogger(__name__)

RESTARTS = 3
LOOK_SECONDS = 0.2
# Longer than torchrun gives its workers, and they need that for a commit.
END_SECONDS = 60.0
OUTPUT = "output"
SAID = 4_000  # characters of torchrun's last words


def run_shards(
    shards: Sequence[ShardDescriptor], settings: Settings, on_progress: Progress, observe: Observe, *, workers: int
) -> None:
    """Run every shard in `workers` processes, each of which takes the next one when it is free.

    Raises what a worker raised, or WorkersLost where they were killed again and again. SIGTERM and Ctrl-C reach the
    workers as SIGTERM: they commit what is finished.
    """
    if not shards:
        return
    from tasks.engines.board import Board

    board = Board.open(shards)
    with tempfile.TemporaryDirectory() as folder:
        with _torchrun(board.port, settings, workers, Path(folder)) as group:
            while group.poll() is None and board.error() is None:
                time.sleep(LOOK_SECONDS)
                _hand_on(board, workers, on_progress, observe)
        _hand_on(board, workers, on_progress, observe)
        _raise_error(board)
        if group.returncode != 0:
            raise WorkersLost(_lost(group.returncode, Path(folder, OUTPUT)))


@contextmanager
def _torchrun(port: int, settings: Settings, workers: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The group of workers; at the end it is told to stop, and waited for."""
    from tasks.engines.rank import PORT

    # Its own meeting point is a file in a folder of this user's alone: over the network it would listen on every address of
    # the machine, and what it finds there is a pickle.
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-conf=store_type=file"]
    command += [f"--rdzv-endpoint={folder / 'meeting'}", "--local-addr=127.0.0.1", f"--nproc-per-node={workers}"]
    command += [f"--max-restarts={RESTARTS}", "--monitor-interval=0.1", "-m", "tasks.engines.rank"]
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Without a number of threads torchrun says that it chose 1; rank.py counts its own.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    unshared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # A store for tensors' ways, on every address too.
    environment = {**os.environ, **environment_of(settings), **threads, **unshared}
    environment |= {PORT: str(port), "PYTHONPATH": path}
    # A session of its own: Ctrl-C reaches this process alone, which then tells the workers to commit. What the workers log
    # comes by the board; torchrun's own words are long, and of use only where it gives up.
    with open(folder / OUTPUT, "wb") as output:
        group = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield group
    finally:
        _end(group)


def _end(group: subprocess.Popen[bytes]) -> None:
    if group.poll() is None:
        group.terminate()
    try:
        group.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def _hand_on(board: Board, workers: int, on_progress: Progress, observe: Observe) -> None:
    for worker, event in board.hear(workers):
        if "images" in event:
            on_progress(event["images"])
        if "observation" in event:
            observe(Observation(**event["observation"]))
        if "message" in event:
            log.log(event["level"], "worker %d: %s", worker, event["message"])


def _raise_error(board: Board) -> None:
    """The error of a worker as its own class, where it is one of ours."""
    error = board.error()
    if error is None:
        return
    kind = getattr(errors, error["kind"], None)
    if isinstance(kind, type) and issubclass(kind, AfterimageError):
        raised = kind(error["message"])
        raised.add_note(error["trace"])
        raise raised
    raise RuntimeError(f"A worker ended with:\n{error['trace']}")


def _lost(returncode: int, output: Path) -> str:
    said = output.read_text(errors="replace")[-SAID:]
    return (
        f"{said}\nThe workers were started {RESTARTS + 1} times, and each time one of them was killed (torchrun ended with "
        f"{returncode}). The lines above name the signal; -9 is mostly lack of memory: give fewer --workers or a smaller "
        "AFTERIMAGE_QUEUE_MIB, and run the same command again. What was finished is committed."
    )
