"""What is taken out as a whole: one moment, every row, and no more memory for more of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pyarrow import parquet
from sqlalchemy import Engine, event, func, insert, select, update

from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.pages import listings, single
from tasks.cache.pages.filters import Filter
from tasks.cache.pages.gallery import Question
from tasks.cache.pages.listings import Listing
from tasks.cache.schema import failure, image, pipeline, prediction, review, run
from tasks.exporting import CSV_ROWS, GROUP_ROWS, WRITERS
from tests.integration.test_gallery import MODEL, SCOPE, START, fill

COUNT = 400


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    found = connect(database_url)
    fill(found, COUNT)
    with writing(found) as connection:
        used = {"source_no": 1, "prefix": "raw/", "model_no": 1}
        connection.execute(insert(pipeline), {"name": "photos", "updated_at": START, **used})
        connection.execute(insert(run), [a_run(number) for number in range(5)])
        connection.execute(insert(failure), [a_failure(number) for number in range(30)])
        digest = connection.execute(select(image.c.digest).where(image.c.key.startswith("raw/"))).scalars().first()
        said = {"pipeline": "photos", "label": "=cat", "model_no": 1, "reviewer": "ann", "reviewed_at": START}
        connection.execute(insert(review), {"digest": digest, **said})
    yield found
    found.dispose()


def a_run(number: int) -> dict[str, Any]:
    of = ("photos", "predict_photos") if number < 4 else ("secret", "predict_secret")
    constant = {"run_type": "manual", "source_no": 1, "prefix": "raw/", "listing": "{}", "generation": 1}
    rest = {"state": "success", "force": number == 0, "started_at": START + timedelta(hours=number // 2)}
    models = {"model_no": 1 if number < 4 else 2, "stages": '{"read": {"items": 1}}'}
    return {"pipeline": of[0], "dag_id": of[1], "run_id": f"run {number}", **constant, **rest, **models}


def a_failure(number: int) -> dict[str, Any]:
    """Some of another model, and some elsewhere."""
    return {
        "source_no": 1,
        "key": f"{'raw' if number % 3 else 'other'}/{number // 2}",
        "etag": str(number % 2),
        "model_no": 1 + (number % 5 == 0),
        "size": 1,
        "last_modified": START,
        "reason": "truncated",
        "message": "-1+1\n\u202e",
        "decoder": "d",
        "attempts": 2,
        "next_retry_at": None if number % 2 else START,
        "first_failed_at": START,
        "last_failed_at": START,
        "run_no": 1,
    }


def everything(engine: Engine) -> dict[str, Listing]:
    return {
        "predictions": listings.predictions(Question(SCOPE, MODEL, Filter()), is_sqlite(engine)),
        "filtered": listings.predictions(Question(SCOPE, MODEL, Filter(label="cat")), is_sqlite(engine)),
        "failures": listings.failures(SCOPE),
        "runs": listings.runs("photos"),
        "reviews": listings.reviews("photos"),
    }


def exported(engine: Engine, listing: Listing, form: str) -> tuple[int, bytes]:
    with listings.snapshot(engine, listing) as found:
        return found.count, b"".join(WRITERS[form](found.kinds, found.rows))


def from_csv(content: bytes, kinds: dict[str, str]) -> list[dict[str, Any]]:
    """The rows again, as far as CSV tells values apart."""
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    return [{name: typed(row[name], kind) for name, kind in kinds.items()} for row in rows]


def typed(cell: str, kind: str) -> Any:
    if kind == "text":
        return cell or None
    if cell == "" or kind in ("json", "top_k"):
        return cell or None
    return {"integer": int, "number": float, "flag": "true".__eq__, "moment": datetime.fromisoformat}[kind](cell)


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    from tasks.tables import cell

    written = {name: cell(value) if isinstance(value, list | dict) else value for name, value in row.items()}
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in written.items()}


def test_csv_parquet_pages_and_the_count_are_the_same_rows(engine: Engine) -> None:
    sizes = {}
    for name, listing in everything(engine).items():
        count, table = exported(engine, listing, "csv")
        _, file = exported(engine, listing, "parquet")
        in_file = [comparable(row) for row in parquet.read_table(io.BytesIO(file)).to_pylist()]
        in_pages = [comparable(row) for row in pages(engine, listing)]
        in_table = from_csv(table, dict(listing.kinds))
        assert len(in_file) == count == listings.count(engine, listing), name
        assert in_file == in_pages, name
        # Texts that a spreadsheet would execute are the one difference.
        bare = [{k: v.removeprefix("'") if isinstance(v, str) else v for k, v in row.items()} for row in in_table]
        assert bare == in_file, name
        sizes[name] = count
    assert sizes["predictions"] > sizes["filtered"] > 10
    assert (sizes["runs"], sizes["failures"]) == (4, 16)
    assert sizes["reviews"] >= 1


def pages(engine: Engine, listing: Listing) -> list[dict[str, Any]]:
    rows, after = [], None
    while True:
        found, after = listings.page(engine, listing, after, 3)
        assert len(found) <= 3
        rows += found
        if after is None:
            return rows


def test_formulas_are_escaped_and_numbers_are_not(engine: Engine) -> None:
    _, table = exported(engine, listings.failures(SCOPE), "csv")
    assert "'-1+1\n\u202e" in table.decode()
    _, table = exported(engine, listings.reviews("photos"), "csv")
    assert ",'=cat," in table.decode()


@pytest.mark.parametrize("after", [["x"], ["a", "b", 1], ["a\0", "b", "c"], [], [None, None, None]])
def test_a_place_that_no_page_wrote_is_refused(engine: Engine, after: list[Any]) -> None:
    with pytest.raises(ValueError, match="no place between rows"):
        listings.page(engine, listings.failures(SCOPE), after, 3)
    with pytest.raises(ValueError, match="isoformat"):
        listings.page(engine, listings.runs("photos"), ["x", "y", "z"], 3)


def test_what_is_written_meanwhile_is_not_in_the_file(engine: Engine) -> None:
    """The count was said before: it stays true, although rows come and go while they are read."""
    listing = everything(engine)["predictions"]
    with listings.snapshot(engine, listing) as found:
        first = next(found.rows)
        more(engine, 10)
        with writing(engine) as connection:
            connection.execute(update(image).values(deleted_at=START))
        rest = list(found.rows)
    assert 1 + len(rest) == found.count > 100
    assert not any("many" in row["key"] for row in [first, *rest])
    assert listings.count(engine, listing) == 0


def test_rows_come_in_pieces_from_the_database(engine: Engine) -> None:
    more(engine, 3_000)
    cursors: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, cursor, *_: cursors.append(type(cursor).__name__))
    with listings.snapshot(engine, everything(engine)["predictions"]) as found:
        next(found.rows)
    assert cursors[-1] == ("Cursor" if is_sqlite(engine) else "ServerCursor")


@pytest.mark.parametrize(("form", "group"), [("csv", CSV_ROWS), ("parquet", GROUP_ROWS)])
def test_a_writer_holds_no_more_than_a_piece(form: str, group: int) -> None:
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for taken in range(1, 35_001):
            yield {"key": f"{taken:09}", "size": taken, "top_k": [{"label": "cat", "score": 0.5}]}

    content = b""
    kinds = {"key": "text", "size": "integer", "top_k": "top_k"}
    for number, piece in enumerate(WRITERS[form](kinds, rows()), 1):
        assert taken <= number * group
        content += piece
    if form == "parquet":
        file = parquet.ParquetFile(io.BytesIO(content))
        assert (file.metadata.num_rows, file.metadata.num_row_groups) == (35_000, 4)
    else:
        assert content.count(b"\n") == 35_001


def more(engine: Engine, count: int) -> None:
    """As many images again, each with bytes of its own."""
    with writing(engine) as connection:
        numbers = [(number, number.to_bytes(32, "big")) for number in range(count)]
        constant = {"source_no": 1, "etag": "e", "size": 1, "last_modified": START, "recorded_at": START}
        images = [{"key": f"raw/many/{number:06}", "digest": digest, **constant} for number, digest in numbers]
        connection.execute(insert(image), images)
        said = {"model_no": 1, "label_index": 0, "score": 0.5, "margin": 0.5, "entropy": 0.5}
        made = {"top_k": b"", "run_no": 1, "generation": 1, "predicted_at": START}
        connection.execute(insert(prediction), [{"digest": digest, **said, **made} for _, digest in numbers])


def test_twins_are_those_that_the_reader_may_see(engine: Engine) -> None:
    inside = (image.c.source_no == 1, image.c.key >= "raw/", image.c.key < "raw0")
    shared = select(image.c.digest).where(*inside).group_by(image.c.digest).having(func.count().between(3, 30))
    with reading(engine) as connection:
        found = connection.execute(select(image).where(*inside, image.c.digest.in_(shared)).limit(1)).one()
        others = select(image.c.source_no, image.c.key).where(image.c.digest == found.digest, image.c.key != found.key)
        expected = {(no, key) for no, key in connection.execute(others) if no == 1 and key.startswith("raw/")}
    seen = single.visible(engine, ["photos"])
    assert seen == single.Visible(frozenset({"photos"}), ((1, "raw/"),), frozenset({1}))
    assert {(row.source_no, row.key) for row in single.twins_of(engine, found, seen)} == expected
    assert expected
    assert single.twins_of(engine, found, single.visible(engine, [])) == []
    assert {row.model_no for row in single.predictions_of(engine, found.digest, seen)} <= {1}
