"""How long each page in the Airflow UI takes to answer over a million predictions in PostgreSQL.

    python -m benchmarks.pages [--images 1000000] [--requests 200]

A real Airflow API server (tests/site.py) serves the pages over loopback; server, database and client share this machine. The
cache is filled by SQL: images spread over 365 days and 1,000 prefixes, two models of 1,000 labels that agree on most of them,
scores that are sure for most images as those of a real network, a run for each day, failures, reviews, and the sums that
publish_run keeps. Each request has filters of its own, drawn from a seed; the first five of each page are thrown away.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode

import httpx
from sqlalchemy import Connection, text

from benchmarks.machine import describe, headline
from tasks.cache.database import connect, writing
from tests.conftest import fresh_cache, serving_postgres
from tests.database_roles import as_owner
from tests.site import serving_site

MUST_MEDIAN, MUST_P99 = 0.3, 1.0
WARM = 5
DAYS, PREFIXES, LABELS = 365, 1_000, 1_000

FILL = [
    "INSERT INTO source VALUES (1, 's3://bucket')",
    "INSERT INTO model (model_no, model_id, name, version, spec, created_at) VALUES "
    "(1, repeat('a', 64), 'small', '1', '{{}}', now()), (2, repeat('b', 64), 'large', '1', '{{}}', now())",
    "INSERT INTO pipeline VALUES ('photos', 1, 'raw/', 2, now())",
    "INSERT INTO model_label SELECT m, l, 'label ' || l FROM generate_series(1, 2) m, generate_series(0, {labels} - 1) l",
    # The first half of the runs is the small model's over everything, the second half the large one's.
    "INSERT INTO run (dag_id, run_id, pipeline, run_type, source_no, prefix, listing, model_no, generation, state, force, "
    "listed, cached, predicted, failed, reads, forward_passes, seconds, worker_seconds, held_back_by, started_at, finished_at) "
    "SELECT 'predict_photos', 'run ' || d, 'photos', 'scheduled', 1, 'raw/', '{{}}', CASE WHEN d <= {days} THEN 1 ELSE 2 END, "
    "1, 'success', false, {images} / {days} * 2, {images} / {days}, {images} / {days}, 3, {images} / {days}, "
    "{images} / {days}, 60, 60, 'the network', now() - make_interval(days => 2 * {days} - d), "
    "now() - make_interval(days => 2 * {days} - d, mins => -1) FROM generate_series(1, 2 * {days}) d",
    "INSERT INTO image SELECT 1, 'raw/' || lpad((n % {prefixes})::text, 4, '0') || '/' || lpad(n::text, 9, '0') || '.jpg', "
    "md5(n::text), 100000 + n % 100000, now() - make_interval(days => n % {days}, secs => n % 86400), "
    "sha256(convert_to((CASE WHEN n % 100 = 0 THEN n - 1 ELSE n END)::text, 'UTF8')), now(), NULL "
    "FROM generate_series(1, {images}) n",
    "SELECT add_partition(m) FROM generate_series(1, 2) m",
    "INSERT INTO prediction SELECT now(), m, (m - 1) * {days} + 1 + (h % {days}), l, score, "
    "least(score, 2 * score - 1 + (1 - score) * random()), "
    "1 - score, 1, digest, '' FROM ("
    "SELECT m, digest, h, 1 - power(random(), 4) AS score, "
    "CASE WHEN m = 2 AND random() < 0.1 THEN floor(random() * {labels})::int ELSE h % {labels} END AS l FROM ("
    "SELECT DISTINCT digest, ('x' || substr(encode(digest, 'hex'), 1, 7))::bit(28)::int AS h FROM image) d, "
    "generate_series(1, 2) m) p",
    "UPDATE prediction SET margin = 0 WHERE margin < 0",
    "INSERT INTO failure SELECT 1, 'raw/bad/' || n || '.jpg', 'e', 2, 10, now(), "
    "(ARRAY['truncated', 'empty', 'not_an_image', 'storage_error'])[n % 4 + 1], 'It is broken.', 'pillow', 1, "
    "CASE WHEN n % 4 = 3 THEN now() END, now(), now() - make_interval(mins => n), 1, NULL "
    "FROM generate_series(1, {images} / 100) n",
    "INSERT INTO review SELECT 'photos', digest, 'label ' || label_index, 2, 'admin', now() FROM prediction WHERE model_no = 2 "
    "ORDER BY margin LIMIT {images} / 200",
    "INSERT INTO label_count (pipeline, model_no, day, label_index, run_no, images) "
    "SELECT 'photos', p.model_no, (i.last_modified AT TIME ZONE 'UTC')::date, p.label_index, "
    "CASE p.model_no WHEN 1 THEN 1 ELSE {days} + 1 END, count(*) FROM image i JOIN prediction p USING (digest) "
    "GROUP BY 2, 3, 4, 5",
    "INSERT INTO score_count (pipeline, model_no, day, bin, run_no, images) "
    "SELECT 'photos', p.model_no, (i.last_modified AT TIME ZONE 'UTC')::date, "
    "least(19, floor(p.score * 20))::smallint, CASE p.model_no WHEN 1 THEN 1 ELSE {days} + 1 END, count(*) "
    "FROM image i JOIN prediction p USING (digest) GROUP BY 2, 3, 4, 5",
    "INSERT INTO pair_count (pipeline, model_no, other_model_no, label_index, other_label_index, run_no, images) "
    "SELECT 'photos', 2, 1, b.label_index, a.label_index, {days} + 1, count(*) FROM image i "
    "JOIN prediction a ON a.digest = i.digest AND a.model_no = 1 JOIN prediction b ON b.digest = i.digest AND b.model_no = 2 "
    "GROUP BY 4, 5",
    "INSERT INTO shard (run_no, generation, shard, expected, done, device, reads, forward_passes, seconds, updated_at) "
    "SELECT 2 * {days}, 1, s, 1000, 1000, 'cpu', 1000, 1000, 10, now() FROM generate_series(0, 63) s",
    "INSERT INTO work_item SELECT 2 * {days}, 1, key, etag, size, last_modified, 0, 'predicted' FROM image "
    "ORDER BY key LIMIT {images} / {days}",
]

Parameters = Callable[[random.Random], dict[str, Any]]


def _key(draw: random.Random) -> str:
    number = draw.randrange(1, 1_000)
    return f"raw/{number % PREFIXES:04}/{number:09}.jpg"


# {page: (path, parameters of a request)}
PAGES: dict[str, tuple[str, Parameters]] = {
    "overview": ("/", lambda draw: {}),
    "run": (f"/runs/predict_photos/run {2 * DAYS}", lambda draw: {}),
    "browse": ("/pipelines/photos/browse", lambda draw: {"prefix": f"raw/{draw.randrange(PREFIXES):04}/"}),
    "browse, uncertain": ("/pipelines/photos/browse", lambda draw: {"order": "uncertain"}),
    "browse, a label": ("/pipelines/photos/browse", lambda draw: {"label": f"label {draw.randrange(LABELS)}"}),
    "browse, a label, uncertain": (
        "/pipelines/photos/browse",
        lambda draw: {"label": f"label {draw.randrange(LABELS)}", "order": "uncertain"},
    ),
    "browse, low scores": ("/pipelines/photos/browse", lambda draw: {"score_to": round(draw.uniform(0.01, 0.5), 3)}),
    "browse, a substring": ("/pipelines/photos/browse", lambda draw: {"contains": f"{draw.randrange(10**6):06}"}),
    "image": ("/pipelines/photos/image", lambda draw: {"key": _key(draw)}),
    "review": ("/pipelines/photos/review", lambda draw: {}),
    "review, a label": ("/pipelines/photos/review", lambda draw: {"label": f"label {draw.randrange(LABELS)}"}),
    "compare": ("/pipelines/photos/compare", lambda draw: {}),
    "drift": ("/pipelines/photos/drift", lambda draw: {}),
    "failures": ("/pipelines/photos/failures", lambda draw: {"reason": draw.choice(["truncated", "empty"])}),
    "api": ("/api/pipelines/photos/predictions", lambda draw: {"prefix": f"raw/{draw.randrange(PREFIXES):04}/"}),
}


def fill(connection: Connection, images: int) -> None:
    """A cache of so many images; the sums and the staged rows are those that runs would have left."""
    connection.execute(text("SET search_path TO afterimage"))
    for statement in FILL:
        connection.execute(text(statement.format(images=images, days=DAYS, prefixes=PREFIXES, labels=LABELS)))


def measure(client: httpx.Client, path: str, parameters: Parameters, requests: int, seed: int) -> list[float]:
    """Seconds of each request, the warm ones."""
    draw = random.Random(seed)
    found = []
    for _ in range(WARM + requests):
        asked = urlencode(parameters(draw))
        started = time.perf_counter()
        answer = client.get(f"/afterimage{path}", params=asked)
        found.append(time.perf_counter() - started)
        assert answer.status_code == 200, (answer.url, answer.text[:500])
    return found[WARM:]


def main(arguments: argparse.Namespace) -> int:
    """Fill, serve, ask and print the table; 1 where a page is too slow."""
    print(headline(describe()))
    slow = 0
    with serving_postgres() as server, fresh_cache(server) as url, tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        engine = connect(as_owner(url))
        with writing(engine) as connection:
            fill(connection, arguments.images)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        print(f"{arguments.images:,} images x 2 models, filled in {time.monotonic() - started:.0f} s\n", flush=True)
        print(f"{'page':30} {'median':>8} {'p99':>8}  milliseconds of {arguments.requests} requests")
        (Path(folder) / "pipelines.toml").write_text(
            f'[photos]\nimages = "s3://bucket/raw/"\nmodel = "{folder}/model"\n'
        )
        environment = {"AFTERIMAGE_DATABASE": url, "AFTERIMAGE_PIPELINES": f"{folder}/pipelines.toml"}
        with serving_site(Path(folder) / "airflow", environment) as site, site.client("admin") as client:
            for name, (path, parameters) in PAGES.items():
                if arguments.only and arguments.only not in name:
                    continue
                seconds = measure(client, path, parameters, arguments.requests, arguments.seed)
                middle, high = median(seconds), quantiles(seconds, n=100)[98]
                is_slow = middle > MUST_MEDIAN or high > MUST_P99
                slow += is_slow
                mark = f"  too slow: {MUST_MEDIAN * 1000:.0f} and {MUST_P99 * 1000:.0f} are the most" if is_slow else ""
                print(f"{name:30} {middle * 1000:8.0f} {high * 1000:8.0f}{mark}", flush=True)
    return 1 if slow else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Milliseconds of each page over a large cache.")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--only", help="pages whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parse()))
