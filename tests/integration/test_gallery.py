"""Pages of predictions give every row of the filter once, in order, on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, func, insert, select

from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.models import add_partition
from tasks.cache.naming import label_of
from tasks.cache.pages import gallery, walking
from tasks.cache.pages.filters import Filter, after_prefix
from tasks.cache.pages.gallery import Place, Question
from tasks.cache.pages.scope import ModelName, PipelineScope
from tasks.cache.schema import image, model, model_label, prediction, source

START = datetime(2026, 11, 1, tzinfo=UTC)
LABELS = ("cat", "dog", "crane", "crane", "never")
FOLDERS = ("raw/", "raw/a/", "raw/\U0010ffff", "raw/\ud7ff", "raw/\ue000", "raw/%_", "rax/", "", "raw/A/")
MODEL = ModelName(1, "1" * 64, "small", "1")
SCOPE = PipelineScope("photos", 1, "s3://bucket", "raw/", MODEL, (MODEL,))
NO_PATIENCE = timedelta(0)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    found = connect(database_url)
    fill(found, 400)
    yield found
    found.dispose()


def fill(engine: Engine, count: int, seed: int = 1) -> None:
    """Images in odd folders, of which many share their bytes or their margin; a second source and a second model."""
    draw = random.Random(seed)
    digests = [sha256(str(number).encode()).digest() for number in range(count // 2)]
    with writing(engine) as connection:
        connection.execute(insert(source), [{"source_no": 1, "uri": SCOPE.source}, {"source_no": 2, "uri": "s3://2"}])
        models = [{"model_no": n, "model_id": str(n) * 64} for n in (1, 2)]
        constant = {"name": "small", "version": "1", "spec": "{}", "created_at": START}
        connection.execute(insert(model), [{**one, **constant} for one in models])
        for number in (1, 2):
            add_partition(connection, number)
        labels = [{"model_no": n, "label_index": i, "label": name} for n in (1, 2) for i, name in enumerate(LABELS)]
        connection.execute(insert(model_label), labels)
        connection.execute(insert(image), [an_image(draw, number, digests) for number in range(count)])
        kept = [(n, digest) for n in (1, 2) for digest in digests if draw.random() < 0.9]
        connection.execute(insert(prediction), [a_prediction(draw, n, digest) for n, digest in kept])


def an_image(draw: random.Random, number: int, digests: list[bytes]) -> dict[str, Any]:
    # Some bytes are under a dozen keys.
    digest = digests[min(int(draw.expovariate(1 / 150)), len(digests) - 1)]
    moment = START + timedelta(hours=draw.randrange(240))
    return {
        "source_no": 1 if draw.random() < 0.9 else 2,
        "key": f"{draw.choice(FOLDERS)}{draw.choice(['é', 'x', '%', '_', chr(0x1F600)])}{number}",
        "etag": "e",
        "size": number,
        "last_modified": moment,
        "digest": digest,
        "recorded_at": START,
        "deleted_at": START if draw.random() < 0.1 else None,
    }


def a_prediction(draw: random.Random, model_no: int, digest: bytes) -> dict[str, Any]:
    index = draw.randrange(len(LABELS) - 1)
    return {
        "model_no": model_no,
        "digest": digest,
        "label_index": index,
        "score": draw.choice([1.0, 0.5, 0.75, draw.random()]),
        "margin": draw.choice([1.0, 1.0, 0.0, 0.5, draw.random()]),
        "entropy": 0.1,
        "top_k": b"",
        "run_no": 1,
        "generation": 1,
        "predicted_at": START,
    }


FILTERS = {
    "everything": Filter(),
    "deleted": Filter(deleted=True),
    "label": Filter(label="cat"),
    "label of two outputs": Filter(label="crane"),
    "label of no image": Filter(label="never"),
    "no label of the model": Filter(label="zebra"),
    "score": Filter(score_from=0.5, score_to=0.75),
    "margin": Filter(margin_from=0.5, margin_to=1.0),
    "dates": Filter(since=START + timedelta(days=2), before=START + timedelta(days=4)),
    "prefix": Filter(prefix="raw/a/"),
    "prefix of the last character": Filter(prefix="raw/\U0010ffff"),
    "prefix before the surrogates": Filter(prefix="raw/\ud7ff"),
    "shorter prefix than the pipeline's": Filter(prefix="ra"),
    "other prefix": Filter(prefix="rax/"),
    "substring": Filter(contains="%"),
    "substring keeps case": Filter(contains="A"),
    "all": Filter("dog", 0.2, 1.0, 0.0, 1.0, START, START + timedelta(days=9), "raw/", "1", True),
}


def wanted(engine: Engine, asked: Filter) -> list[tuple[float, bytes, str]]:
    """What the filter means, said over all rows in Python."""
    query = select(
        image, label_of().label("label"), prediction.c.score, prediction.c.margin, prediction.c.model_no
    ).join(prediction, prediction.c.digest == image.c.digest)
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return sorted((row.margin, row.digest, row.key) for row in rows if fits(row, asked))


def fits(row: Any, asked: Filter) -> bool:
    return (
        row.source_no == 1
        and row.model_no == 1
        and row.key.startswith(SCOPE.prefix)
        and row.key.startswith(asked.prefix)
        and asked.contains in row.key
        and (asked.deleted or row.deleted_at is None)
        and (asked.label is None or row.label == asked.label)
        and (asked.score_from is None or row.score >= asked.score_from)
        and (asked.score_to is None or row.score <= asked.score_to)
        and (asked.margin_from is None or row.margin >= asked.margin_from)
        and (asked.margin_to is None or row.margin <= asked.margin_to)
        and (asked.since is None or row.last_modified >= asked.since)
        and (asked.before is None or row.last_modified < asked.before)
    )


def all_pages(engine: Engine, asked: Filter, order: str, limit: int, patience: timedelta) -> list[Any]:
    """The rows of all pages; a page is never longer than asked, and one that is short says why."""
    pages: Any = {"key": gallery.by_key, "uncertain": gallery.by_margin}[order]
    question = Question(SCOPE, MODEL, asked, limit, patience)
    rows, after = [], None
    for _ in range(2_000):
        page = pages(engine, question, after)
        assert len(page.rows) <= limit
        assert page.after is None or page.stopped or len(page.rows) == limit
        rows += page.rows
        after = page.after
        if after is None:
            return rows
    raise AssertionError("the pages have no end")


@pytest.mark.parametrize("pieces", ["small", "usual"])
def test_pages_give_every_row_of_a_filter_once(engine: Engine, pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small pieces what is looked for lies across many of them, and each page is over after one."""
    limit, patience = (7, gallery.PATIENCE) if pieces == "usual" else (48, NO_PATIENCE)
    if pieces == "small":
        monkeypatch.setattr(gallery, "_PIECES", (5, 19))
        monkeypatch.setattr(walking, "CANDIDATES", 30)
        monkeypatch.setattr(walking, "LATER_GROUP", 9)
    for name, asked in FILTERS.items():
        expected = wanted(engine, asked)
        by_key = all_pages(engine, asked, "key", limit, patience)
        assert [row.key for row in by_key] == sorted(key for _, _, key in expected), name
        by_margin = all_pages(engine, asked, "uncertain", limit, patience)
        assert [(row.margin, row.digest, row.key) for row in by_margin] == expected, name
    assert len(wanted(engine, Filter())) > 150


def test_an_export_asks_for_the_same_rows(engine: Engine) -> None:
    for name, asked in FILTERS.items():
        query = gallery.matching(Question(SCOPE, MODEL, asked), is_sqlite(engine))
        with reading(engine) as connection:
            keys = [row.key for row in connection.execute(query)]
            count = connection.execute(select(func.count()).select_from(query.order_by(None).subquery())).scalar_one()
        assert keys == sorted(key for _, _, key in wanted(engine, asked)), name
        assert count == len(keys)


def test_a_page_that_looks_for_what_is_not_there_stops_in_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_PIECES", (10,))
    page = gallery.by_key(engine, Question(SCOPE, MODEL, Filter(contains="nowhere"), patience=NO_PATIENCE))
    assert (page.rows, page.stopped, page.looked_at) == ([], True, 10)
    assert page.after is not None

    monkeypatch.setattr(walking, "CANDIDATES", 8)
    page = gallery.by_margin(engine, Question(SCOPE, MODEL, Filter(contains="nowhere"), patience=NO_PATIENCE))
    assert (page.rows, page.stopped) == ([], True)
    assert isinstance(page.after, Place)


def test_the_least_certain_are_read_from_the_index(engine: Engine) -> None:
    """Also those of one margin, however many: no scan, and no more to sort than has the margin at which the last page ended."""
    asked: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, *said: asked.append((said[0], said[1])))
    explain = "EXPLAIN QUERY PLAN" if is_sqlite(engine) else "EXPLAIN"
    with reading(engine) as connection:
        if not is_sqlite(engine):
            connection.exec_driver_sql("SET enable_seqscan = off")
        way = walking.way_of(connection, MODEL.model_no)
        walking._least_certain(connection, way, walking.Position(0.5, b"\x80"), inclusive=True)
        plans = [
            "\n".join(map(str, connection.exec_driver_sql(f"{explain} {said}", values))) for said, values in asked[-2:]
        ]
    at, beyond = plans if is_sqlite(engine) else (plans[0], plans[1])
    assert "prediction_label" in beyond or "label_index_margin" in beyond
    # In the order of digests, or by the index and sorted: what is less, by the server's statistics.
    assert "pkey" in at or "autoindex" in at or "prediction_label" in at or "label_index_margin" in at
    assert "Sort" not in beyond
    assert "TEMP B-TREE" not in beyond


@given(st.text(max_size=3), st.text(max_size=3))
def test_what_follows_a_prefix(prefix: str, rest: str) -> None:
    end = after_prefix(prefix)
    inside, last = (prefix + rest).encode(), (prefix + "\U0010ffff" * 3).encode()
    assert prefix.encode() <= inside
    if end is None:
        assert prefix.strip("\U0010ffff") == ""
    else:
        assert inside < end.encode()
        assert last < end.encode()
        assert not end.startswith(prefix)
