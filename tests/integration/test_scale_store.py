"""The synthetic bucket of the benchmarks: the same objects from their formula, over S3's listing and from PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from benchmarks.scale.listing import recorded_answers
from benchmarks.scale.objects import LIMIT, SQL, Keys, object_of
from benchmarks.scale.store import BUCKET, SyntheticStore, page, serving_objects
from tasks.cache.database import connect
from tasks.errors import ConfigurationError
from tasks.settings import load_settings
from tasks.storage import ImageObject
from tasks.storage.listing_answers import _usual, read_page
from tasks.storage.s3 import S3Store
from tests.conftest import ROOT
from tests.list_answers import as_boto3_reads_it

NUMBERS = (0, 1, 9, 999, 1_000, 1_001, 9_999, 10_000, 123_456, 99_999_999, 123_456_789, LIMIT - 1)


def test_postgresql_makes_the_same_objects_of_their_numbers(postgres_url: str) -> None:
    columns = ", ".join(f"{expression} AS {name}" for name, expression in SQL.items())
    engine = connect(postgres_url)
    with engine.connect() as connection:
        query = f"SELECT {columns} FROM unnest(CAST(:numbers AS bigint[])) WITH ORDINALITY AS given (n, at) ORDER BY at"
        rows = connection.execute(text(query), {"numbers": list(NUMBERS)}).all()
    engine.dispose()

    found = [ImageObject(row.key, row.etag, row.size, row.last_modified.astimezone(UTC)) for row in rows]
    assert found == [object_of(number) for number in NUMBERS]


def test_no_two_objects_are_alike_and_keys_grow_with_numbers() -> None:
    objects = [object_of(number) for number in range(30_000)]

    assert len({image.etag for image in objects}) == len({image.key for image in objects}) == 30_000
    assert [image.key for image in objects] == sorted(image.key for image in objects)
    assert all(len(image.etag) == 32 for image in objects)


@settings(max_examples=60, deadline=None)
@given(
    count=st.sampled_from([0, 1, 999, 1_000, 1_001, 25_000]),
    prefix=st.sampled_from(
        ["", "raw/", "raw/000001/", "raw/000001/00001234", "raw/0000009", "none/", "raw/000001/000012345.jpg"]
    ),
    after=st.sampled_from([None, "", "raw/000000/000000998.jpg", "raw/000001", "raw/000000/0000009985", "z", "a"]),
    limit=st.sampled_from([1, 7, 1_000]),
)
@example(25_000, "raw/", "raw/000000/000009500.jpg", 1_000)
def test_a_page_holds_what_s3_would_give(count: int, prefix: str, after: str | None, limit: int) -> None:
    wanted = [
        object_of(n) for n, key in enumerate(Keys(count)) if key.startswith(prefix) and (after is None or key > after)
    ]
    asked = {"prefix": prefix, "max-keys": str(limit)} | ({} if after is None else {"start-after": after})
    body = page(f"{BUCKET}{count}", asked)
    assert body is not None

    found = read_page(body)

    assert found.images == wanted[:limit]
    assert found.more == (len(wanted) > limit)
    if found.more:
        following = page(f"{BUCKET}{count}", asked | {"continuation-token": str(found.token)})
        assert following is not None
        assert read_page(following).images == wanted[limit : 2 * limit]


def test_recorded_answers_are_what_boto3_reads_and_take_the_fast_road() -> None:
    for body in recorded_answers()[:2]:
        assert _usual(body) == as_boto3_reads_it(body)
        assert len(read_page(body).images) == 1_000


@pytest.fixture(scope="module")
def serving() -> Iterator[SyntheticStore]:
    with serving_objects() as found:
        yield found


def test_our_store_lists_it_from_end_to_end(serving: SyntheticStore) -> None:
    store = S3Store(f"{BUCKET}12345", load_settings(**serving.settings))

    assert [image for found in store.pages("") for image in found] == [object_of(number) for number in range(12_345)]
    assert store.begins_after("raw/")
    with pytest.raises(ConfigurationError, match="does not exist"):
        list(S3Store("another", load_settings(**serving.settings)).pages(""))


def test_a_hundred_million_objects_cost_it_no_memory(serving: SyntheticStore) -> None:
    store = S3Store(f"{BUCKET}100000000", load_settings(**serving.settings))
    next(store.pages(""))
    before = serving.memory()

    places = range(0, 100_000_000, 9_999_998)
    behind = [store.first_key("", object_of(number).key) for number in places]
    listed = sum(len(found) for found in store.pages("raw/00999"))

    assert behind == [object_of(number + 1).key for number in places]
    assert listed == 100_000
    assert serving.memory() - before < 20_000_000


def test_the_measurement_names_every_contestant() -> None:
    command = [sys.executable, "-m", "benchmarks.scale.listing", "--rounds", "1", "--keys", "3000"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    lines = [line for line in done.stdout.splitlines() if "keys/s" in line]
    assert [line.split("  ")[0] for line in lines] == [
        *("own reader", "own reader, keys with %", "own reader, unusual shape", "botocore's parser"),
        *("S3Store.pages", "boto3"),
    ]
