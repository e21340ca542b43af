"""What the processes of one run share: a key-value store of torch.distributed on loopback, in the process that began.

The store holds the shards, the number of the next one, what the workers tell, and the first error that another try cannot
mend. It outlives every worker, so a worker that is started anew finds what the others did.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tasks.plan import ShardDescriptor

HOST = "127.0.0.1"
PATIENCE = timedelta(seconds=10)


class Board:
    """One store, seen from either side. Raises torch.distributed.DistError where the other side is gone."""

    def __init__(self, store: TCPStore, listening: socket.socket | None = None) -> None:
        self._store = store
        self._listening = listening  # The store listens on it for as long as it lives.
        self._read: dict[int, int] = {}
        self._telling = threading.Lock()

    @classmethod
    def open(cls, shards: Sequence[ShardDescriptor]) -> Board:
        """A new board with the shards of a run, for other processes of this machine to connect to."""
        # By itself a store listens on every address of the machine, and asks nobody who he is.
        listening = socket.create_server((HOST, 0))
        store = TCPStore(
            HOST,
            listening.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.fileno(),
            timeout=PATIENCE,
        )
        board = cls(store, listening)
        board._store.set("shards", json.dumps([shard.to_dict() for shard in shards]))
        return board

    @classmethod
    def connect(cls, port: int) -> Board:
        """The board that another process opened."""
        return cls(TCPStore(HOST, port, is_master=False, wait_for_workers=False, timeout=PATIENCE))

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._store.port)

    def take_shards(self, attempt: int) -> Iterator[ShardDescriptor]:
        """Shards that nobody else has taken in this attempt, as long as there is no error."""
        shards = json.loads(self._store.get("shards"))
        while self.error() is None:
            number = self._store.add(f"taken/{attempt}", 1) - 1
            if number >= len(shards):
                return
            yield ShardDescriptor.from_dict(shards[number])

    def tell(self, worker: int, event: Mapping[str, Any]) -> None:
        """Say something to the process that began; each worker is heard in its own order."""
        with self._telling:
            number = self._store.add(f"told/{worker}", 0)
            self._store.set(f"event/{worker}/{number}", json.dumps(event))
            self._store.add(f"told/{worker}", 1)

    def hear(self, workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """What was told since the last time, as (worker, event)."""
        for worker in range(workers):
            told = self._store.add(f"told/{worker}", 0)
            for number in range(self._read.get(worker, 0), told):
                key = f"event/{worker}/{number}"
                yield worker, json.loads(self._store.get(key))
                self._store.delete_key(key)
            self._read[worker] = told

    def fail(self, error: Mapping[str, str]) -> None:
        """Write down an error that ends the run; the first one stays."""
        self._store.compare_set("error", "", json.dumps(error))

    def error(self) -> dict[str, str] | None:
        """The error that ends the run."""
        if not self._store.check(["error"]):
            return None
        found: dict[str, str] = json.loads(self._store.get("error"))
        return found
