"""The table of docs/scale.md: what listing and the cache do with millions of objects, client and server on the same cores.

    python -m benchmarks.scale [--objects 10000000] [--rounds 3]

It makes a PostgreSQL server of its own and fills a cache of so many images by SQL, which takes minutes. Ends with 1 where a must
was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import text

from benchmarks.machine import describe
from benchmarks.scale.comparing import MARKS, PREDICTIONS, STAGING, comparison_rates
from benchmarks.scale.ledger import SETTINGS, Cache, remember, serving_cache
from benchmarks.scale.listing import BOTOCORE, OURS, reader_rates
from benchmarks.scale.store import BUCKET, SyntheticStore, serving_objects
from benchmarks.scale.upserting import bytes_per_image, bytes_per_prediction, commit_rate, upsert_rates
from benchmarks.verdict import MISSED, Target
from tasks.cache.database import writing
from tasks.cache.runs import RunKey, RunStart, open_run
from tasks.window import EVERYTHING

SMALL = 1_000_000
PROJECT = Path(__file__).resolve().parents[2]

Line = tuple[str, float, Target | None, str]


def quiet(_line: str) -> None:
    """Rounds are not told one by one."""


def reader_lines(rounds: int) -> Iterator[Line]:
    """The parser of listings."""
    rates = {name: median(found) for name, found in reader_rates(rounds, quiet).items()}
    yield "listing parse, keys/s of a core", rates[OURS], Target(60_000, 90_000, unit=""), ""
    yield "  botocore's parser, keys/s of a core", rates[BOTOCORE], None, "in turn"


def comparison_lines(cache: Cache, source: str, objects: int, rounds: int) -> Iterator[Line]:
    """The anti-join."""
    rates = {name: median(found) for name, found in comparison_rates(cache, source, objects, 2 * rounds, quiet).items()}
    named = f"anti-join against {objects:,} images, keys/s"
    yield named, rates[MARKS], Target(100_000, 200_000, unit=""), "what a listing does"
    yield "  by the predictions, without marks", rates[PREDICTIONS], None, "in turn"
    yield "  staged, then one UPDATE", rates[STAGING], None, "in turn"


def listing_lines(cache: Cache, store: SyntheticStore, objects: int, rounds: int) -> Iterator[Line]:
    """A listing in which all is known, of a million and of all objects."""
    small = [probed(cache, store, SMALL) for _ in range(rounds)]
    rate = median(SMALL / (each["list"] + each["deduplicate"]) for each in small)
    yield (
        f"{SMALL:,} objects, all known: list + deduplicate, keys/s",
        rate,
        Target(30_000, 60_000, unit=""),
        f"{rounds} runs",
    )
    large = probed(cache, store, objects)
    seconds = large["list"] + large["deduplicate"]
    yield f"  {objects:,} objects, keys/s", objects / seconds, None, f"{seconds:.0f} s"
    peak = max(each["peak"] for each in small)
    yield f"memory while listing {objects:,} objects, MB", large["peak"], Target(150, 150, "at most", ""), ""
    yield f"  of that for {SMALL:,} objects", large["peak"] / peak, Target(1.1, 1.02, "at most", ""), f"{peak:.0f} MB"


def probed(cache: Cache, store: SyntheticStore, objects: int) -> dict[str, Any]:
    """A run over so many objects, after one that is known to have been large."""
    bucket = f"{BUCKET}{objects}"
    environment = {
        **os.environ,
        "AFTERIMAGE_DATABASE": cache.url,
        "AFTERIMAGE_HOME": str(cache.folder),
        **{f"AFTERIMAGE_{name.upper()}": value for name, value in store.settings.items()},
    }
    command = [sys.executable, "-m", "benchmarks.scale.probe", bucket, str(cache.folder / "model")]
    answer = subprocess.run(command, env=environment, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    assert (found["listed"], found["open"]) == (objects, 0), found
    return found


def upsert_lines(cache: Cache, rounds: int) -> Iterator[Line]:
    """Writing, and what is written."""
    rates, replayed = upsert_rates(cache, 8 * rounds, quiet)
    yield "upsert of new predictions, top-5, rows/s", median(rates), Target(40_000, 80_000, unit=""), "20,000 at a time"
    yield "replay of the same rows: rows changed", replayed, Target(0, 0, "at most", ""), ""
    commits = median(commit_rate(cache, 5) for _ in range(rounds))
    yield "  whole commits of 2,000 images, images/s", commits, None, "predictions, images, outcomes"
    sizes = bytes_per_prediction(cache)
    yield "  bytes of an image row, indexes included", bytes_per_image(cache), None, ""
    parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items() if name != "all")
    yield "bytes of a prediction, indexes included", sizes["all"], Target(230, 180, "at most", ""), parts


def known_before(cache: Cache, source: str, objects: int) -> None:
    """A run over the source that ended well and listed so many: what says that it is large."""
    start = RunStart(
        RunKey("bench", f"before {source}"), "manual", None, source, "raw/", EVERYTHING, force=False, listing={}
    )
    staging = open_run(cache.engine, start)
    with writing(cache.engine) as connection:
        done = "UPDATE afterimage.run SET state = 'success', listed = :listed, cached = :listed WHERE run_no = :run_no"
        connection.execute(text(done), {"listed": objects, "run_no": staging.run_no})


def tell(line: Line) -> bool:
    """Print a line; whether its must was missed."""
    name, found, target, more = line
    if target is None:
        print(f"{name:58} {found:12,.1f}  {'':24} {more}", flush=True)
        return False
    verdict = target.judge(found)
    bars = f"must {target.must:,.10g}, aim {target.aim:,.10g}"
    print(f"{name:58} {found:12,.1f}  {verdict:7} {bars:30} {more}", flush=True)
    return verdict == MISSED


def main(objects: int, rounds: int) -> int:
    """Fill, measure, print; 1 where a must was missed."""
    machine = describe()
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; load before: {machine['load_before'][0]}"
    )
    print(f"commit {machine['commit'][:12]}{' with changes' if machine['uncommitted'] else ''}\n", flush=True)
    missed = [tell(line) for line in reader_lines(rounds)]
    with serving_cache() as cache, serving_objects() as store:
        endpoint = store.settings["s3_endpoint"]
        sources = {count: f"s3://{BUCKET}{count}@{endpoint}" for count in (SMALL, objects)}
        started = time.monotonic()
        # The small bucket has the first of the same objects: the images are its own, their predictions are shared.
        remember(cache, sources[objects], 0, objects - 1)
        share(cache, sources[objects], sources[SMALL], SMALL)
        for count, source in sources.items():
            known_before(cache, source, count)
        print(server_of(cache))
        print(f"\na cache of {objects:,} images, filled in {time.monotonic() - started:.0f} s\n", flush=True)
        missed += [tell(line) for line in comparison_lines(cache, sources[objects], objects, rounds)]
        missed += [tell(line) for line in listing_lines(cache, store, objects, rounds)]
        missed += [tell(line) for line in upsert_lines(cache, rounds)]
    return int(any(missed))


def server_of(cache: Cache) -> str:
    """The server's version, and what it was told."""
    with writing(cache.engine) as connection:
        found = {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("server_version", *SETTINGS)}
    return "PostgreSQL " + ", ".join(f"{name} {value}" for name, value in found.items())


def share(cache: Cache, source: str, other: str, count: int) -> None:
    """The first images of a source in another one as well."""
    from tasks.cache.runs import source_number

    if source == other:
        return
    with writing(cache.engine) as connection:
        numbers = {"mine": source_number(connection, source), "other": source_number(connection, other), "count": count}
        copied = (
            "INSERT INTO afterimage.image SELECT :other, key, etag, size, last_modified, digest, recorded_at, deleted_at, mark "
            "FROM afterimage.image WHERE source_no = :mine ORDER BY key LIMIT :count"
        )
        connection.execute(text(copied), numbers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    sys.exit(main(asked.objects, asked.rounds))
