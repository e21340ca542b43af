"""One of the processes that torchrun starts for `./afterimage predict --workers N`.

It takes shards from the board until there are no more. An error that another try cannot mend is written on the board, and
the process ends as if all were well: only what kills a process, such as lack of memory, makes torchrun start it anew.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.engines.board import Board
    from tasks.observation import Observation
    from tasks.settings import Settings

PORT = "AFTERIMAGE_BOARD_PORT"


def main() -> int:
    """Do shards; exit code 0, or that of a SIGTERM."""
    rank, workers = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    share_cores(rank, workers)
    from torch.distributed import DistError

    from tasks.engines.board import Board
    from tasks.errors import Interrupted
    from tasks.settings import load_settings

    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    try:
        board = Board.connect(int(os.environ[PORT]))
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[BoardHandler(board, rank)])
        try:
            work(board, on_own_device(load_settings(), rank), rank, attempt)
        except Interrupted:
            return 128 + signal.SIGTERM
        except Exception as error:
            board.fail({"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc()})
    except DistError:
        # The process that began is gone, and with it the board: nobody waits for this one, and starting it anew is no use.
        logging.getLogger().handlers.clear()
    return 0


def work(board: Board, settings: Settings, rank: int, attempt: int) -> None:
    """Take one shard after the other."""
    from tasks.worker import Worker

    def observe(observation: Observation) -> None:
        board.tell(rank, {"observation": plain(observation)})

    with Worker(settings) as worker:
        for shard in board.take_shards(attempt):
            worker.predict(shard, lambda images: board.tell(rank, {"images": images}), observe=observe)


def share_cores(rank: int, workers: int) -> None:
    """Leave the other workers their part of the processors: everything that counts cores later counts these."""
    if not hasattr(os, "sched_setaffinity"):
        return
    mine = sorted(os.sched_getaffinity(0))[rank::workers]
    if mine:
        os.sched_setaffinity(0, mine)
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(mine)))


def on_own_device(settings: Settings, rank: int) -> Settings:
    """A GPU for each worker, in turn where there are fewer; a device that was named with its number is everybody's."""
    if settings.device not in ("auto", "cuda"):
        return settings
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return settings.model_copy(update={"device": f"cuda:{rank % count}"}) if count else settings


def plain(observation: Observation) -> dict[str, Any]:
    """An observation as JSON values."""
    values = {field.name: getattr(observation, field.name) for field in fields(observation)}
    return {name: value if isinstance(value, str) else dict(value) for name, value in values.items()}


class BoardHandler(logging.Handler):
    """Log records go to the process that began, which has the terminal or the log."""

    def __init__(self, board: Board, rank: int) -> None:
        super().__init__()
        self._board, self._rank = board, rank

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        self._board.tell(self._rank, {"level": record.levelno, "message": self.format(record)})


if __name__ == "__main__":
    sys.exit(main())
