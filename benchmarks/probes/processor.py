"""What each kind of thread takes of the processor, over one run in this process.

    python -m benchmarks.probes.processor MODEL-URI PHOTOGRAPHS DATABASE

Linux keeps for each thread how long it ran (/proc/self/task/*/schedstat); threads are looked at five times a second, so the last
moments of each are missed and stand under "rest", with the threads of libraries.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from benchmarks.probes.cached import timed
from tasks.processors import cores
from tasks.settings import load_settings

PAUSE_SECONDS = 0.2
MAIN, REST, IDLE, WATCH = "main thread", "rest", "idle", "watch"


class Watch(threading.Thread):
    """Looks at all threads until the process ends."""

    def __init__(self) -> None:
        super().__init__(name=WATCH, daemon=True)
        self._seen: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        """Look, and rest."""
        while True:
            self.look()
            time.sleep(PAUSE_SECONDS)

    def look(self) -> None:
        """Note the seconds of every thread that is there."""
        for thread in threading.enumerate():
            try:
                nanoseconds = int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0])
            except FileNotFoundError:  # It has ended since.
                continue
            self._seen[thread.native_id or 0] = kind_of(thread.name), nanoseconds / 1e9

    def seconds(self) -> dict[str, float]:
        """{kind of thread: CPU seconds}."""
        found: dict[str, float] = {}
        for kind, seconds in list(self._seen.values()):
            found[kind] = found.get(kind, 0.0) + seconds
        return found


def kind_of(name: str) -> str:
    """decode_0 and decode_1 are both decode."""
    return MAIN if name == "MainThread" else name.rpartition("_")[0] or name


def main(uri: str, folder: Path, database: Path) -> None:
    """One run into an empty cache."""
    watch = Watch()
    watch.start()
    started, spent = time.perf_counter(), time.process_time()
    _, counts = timed(uri, folder, load_settings(database=f"sqlite:///{database}"))
    watch.look()
    passed, spent = time.perf_counter() - started, time.process_time() - spent
    found = watch.seconds()
    spent -= found.pop(WATCH, 0.0)
    kinds = {**found, REST: spent - sum(found.values()), IDLE: cores() * passed - spent}
    print(json.dumps({"seconds": kinds, "images": counts["predicted"]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
