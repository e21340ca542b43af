"""A long run of accidents: runs side by side over a bucket that changes, and faults that chance picks; then the oracle.

    make soak MINUTES=30           python -m tests.faults.soak --minutes 30

The seed is printed; AFTERIMAGE_TEST_SEED=N repeats its choices. Ends with 1 where a row was lost or doubled.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tasks.cache.runs import RunKey
from tests.conftest import SEED
from tests.faults.oracle import settle
from tests.faults.postgres import OwnPostgres, own_database, own_postgres
from tests.faults.victim import CALM, POINTS, SIGKILL, SIGTERM, Ended, Fate, end_victim
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner

FIRST_IMAGES = 150
SIDE_BY_SIDE = 2
LONGEST_RUN_SECONDS = 120.0


@dataclass
class Bucket:
    """A folder of images that changes between runs; what is in it is known by the store alone."""

    folder: Path
    draw: random.Random
    written: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def fill(self, count: int) -> None:
        """Add images, some of them twins of others."""
        write_pictures(self.folder, count, start=self.written)
        self.written += count
        (self.folder / f"twin-{self.written}.png").write_bytes(picture(self.draw.randrange(self.written)))

    def change(self) -> None:
        """Add some, and overwrite, remove, damage and empty one each."""
        self.fill(self.draw.randint(5, 40))
        overwritten, removed, damaged, emptied = self.draw.sample(sorted(self.folder.iterdir()), 4)
        overwritten.write_bytes(picture(self.draw.randrange(10**6, 10**7)))
        removed.unlink()
        damaged.write_bytes(picture(self.draw.randrange(10**6))[: self.draw.randint(1, 200)])
        emptied.write_bytes(b"")
        self.done.update(added=1, overwritten=1, removed=1, damaged=2)


@dataclass
class Soak:
    """One cache that is maltreated; `server` is its PostgreSQL, None for SQLite."""

    runner: Runner
    bucket: Bucket
    draw: random.Random
    folder: Path
    server: OwnPostgres | None
    done: Counter[str] = field(default_factory=Counter)

    def round(self) -> None:
        """Change the bucket and let some runs go through it, each with its fate, and the database with its own."""
        self.bucket.change()
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            runs = [pool.submit(self._run, number, self._fate()) for number in range(SIDE_BY_SIDE)]
            if self.server is not None:
                self._strike(self.server)
            for run in runs:
                self._count(run.result())

    def _fate(self) -> Fate:
        if self.draw.random() < 0.2:
            return CALM
        death = self.draw.choices((SIGKILL, SIGTERM), (3, 1))[0]
        return Fate(death, self.draw.choice(list(POINTS)), self.draw.randint(1, 12))

    def _run(self, number: int, fate: Fate) -> Ended:
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        # The same run again and again, as Airflow's clearing does it: half of what it meets is an older attempt's.
        key = RunKey("soak", f"run-{number}-{self.done['rounds'] // 2}")
        return end_victim(self.runner, folder, fate, key, LONGEST_RUN_SECONDS)

    def _strike(self, server: OwnPostgres) -> None:
        time.sleep(self.draw.uniform(0.1, 1.0))
        accident = self.draw.choice(("nothing", "terminated", "stopped"))
        if accident == "terminated":
            for pid in server.backends("true"):
                self.done["connections terminated"] += server.tell(f"SELECT pg_terminate_backend({pid})") == [(True,)]
        elif accident == "stopped":
            server.stop_at_once()
            time.sleep(self.draw.uniform(0, 2))
            server.start()
            self.done["PostgreSQL stopped at once"] += 1

    def _count(self, ended: Ended) -> None:
        assert ended.code is not None
        assert ended.code <= 0 or ended.error, "a victim that never lived: see its standard error"
        self.done["runs"] += 1
        self.done["SIGKILL"] += ended.code == -signal.SIGKILL
        self.done["SIGTERM"] += "Interrupted: SIGTERM" in ended.error or ended.code == -signal.SIGTERM
        self.done["runs that failed otherwise"] += ended.code == 1 and "Interrupted: SIGTERM" not in ended.error
        self.done["runs that succeeded"] += ended.code == 0
        words = ended.error.strip().splitlines()
        if ended.code == 1 and words:
            self.done[f"error {words[-1].split(':')[0].removeprefix('tasks.errors.')}"] += 1

    def settled(self, home: Path) -> None:
        """Compare with a run over the same bucket that nobody disturbs."""
        table = self.runner.pipeline
        url = f"sqlite:///{self.folder / 'calm'}-{self.done['settled']}.db"
        calm = Runner(home, url, images=table.images, model=table.model)
        calm.run()
        found = settle(self.runner, calm.predictions())
        self.done.update({"lost": found.lost, "doubled": found.doubled, "settled": 1})
        self.done["images"] = found.counts["listed"]


@contextmanager
def caches(folder: Path, kinds: tuple[str, ...]) -> Iterator[dict[str, tuple[str, OwnPostgres | None]]]:
    """{kind: (URL, server)} of empty caches."""
    with ExitStack() as stack:
        found: dict[str, tuple[str, OwnPostgres | None]] = {}
        if "sqlite" in kinds:
            found["sqlite"] = f"sqlite:///{folder / 'cache.db'}", None
        if "postgresql" in kinds:
            server = stack.enter_context(own_postgres())
            found["postgresql"] = stack.enter_context(own_database(server, "soak")), server
        yield found


def soak(
    folder: Path, seconds: float, seed: int, kinds: tuple[str, ...] = ("sqlite", "postgresql")
) -> dict[str, Counter[str]]:
    """Maltreat each cache in turn for so long altogether; what was done to it and found, for each."""
    draw = random.Random(seed)
    model = str(write_small_bundle(folder / "model"))
    results: dict[str, Counter[str]] = {}
    with caches(folder, kinds) as found:
        soaks = []
        for kind, (url, server) in found.items():
            bucket = Bucket(folder / f"images-{kind}", draw)
            bucket.fill(FIRST_IMAGES)
            settings = {"batch_size": 4, "readers": 4}
            table = {"images": str(bucket.folder), "model": model, "commit_images": 8}
            (folder / kind).mkdir()
            soaks.append(Soak(Runner(folder / "home", url, settings, **table), bucket, draw, folder / kind, server))
            results[kind] = soaks[-1].done
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for one in soaks:
                one.round()
                one.done["rounds"] += 1
                if one.done["rounds"] % 5 == 0:
                    one.settled(folder / "home")
        for one in soaks:
            one.settled(folder / "home")
            one.done.update(one.bucket.done)
    return results


def report(results: dict[str, Counter[str]]) -> str:
    """The counts, a line for each."""
    lines = []
    for kind, done in results.items():
        lines += [f"{kind}:", *(f"  {name:32} {count:>8,}" for name, count in done.items())]
    return "\n".join(lines)


def main() -> int:
    """Soak for --minutes; 1 where anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    print(f"seed {SEED}: repeat with AFTERIMAGE_TEST_SEED={SEED}", flush=True)
    with tempfile.TemporaryDirectory(prefix="afterimage-soak-") as folder:
        results = soak(Path(folder), minutes * 60, SEED)
    print(report(results))
    return int(any(done["lost"] or done["doubled"] for done in results.values()))


if __name__ == "__main__":
    sys.exit(main())
