"""Shards: every open row is in exactly one, in the order of the keys, and they are of nearly one size."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from tasks.cache.database import connect, reading, writing
from tasks.cache.runs import tally
from tasks.cache.schema import work_item
from tasks.cache.staging import assign_shards, expected_work, open_pages
from tests.property import rows
from tests.property.values import KEYS, ODD_KEYS


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@settings(max_examples=12)
@given(
    keys=st.lists(KEYS, max_size=60, unique=True),
    done=st.integers(0, 10),
    per_shard=st.integers(1, 80),
    at_least=st.integers(1, 70),
    at_most=st.integers(1, 70),
)
@example(keys=list(ODD_KEYS), done=3, per_shard=1, at_least=1, at_most=64)
@example(keys=["a"], done=0, per_shard=20_000, at_least=64, at_most=1)
@example(keys=[], done=0, per_shard=1, at_least=1, at_most=1)
def test_every_open_row_is_in_one_shard(
    engine: Engine, keys: list[str], done: int, per_shard: int, at_least: int, at_most: int
) -> None:
    images = [rows.listed(key) for key in keys]
    staging = rows.staged(engine, [images[:30], images[30:]])
    rows.predicted(engine, staging, rows.model(engine), images[:done])
    is_open = sorted(key.encode() for key in keys[done:])
    with writing(engine) as connection:
        sizes = assign_shards(connection, staging, per_shard, at_least, at_most)
        again = assign_shards(connection, staging, per_shard, at_least, at_most)
    assert again == sizes, "clearing deduplicate divides alike"
    divided = [
        [image.key.encode() for page in open_pages(engine, staging, number) for image in page]
        for number in range(len(sizes))
    ]
    assert [key for part in divided for key in part] == is_open, "in the order of the keys, each once"
    assert [len(part) for part in divided] == sizes
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(at_most, max(ceil(len(is_open) / per_shard), min(at_least, len(is_open))))
    with reading(engine) as connection:
        closed = select(work_item.c.shard).where(work_item.c.run_no == staging.run_no, work_item.c.outcome.is_not(None))
        assert {number for (number,) in connection.execute(closed)} <= {None}
    assert expected_work(engine, staging)[0] == len(sizes)
    assert tally(engine, staging)["open"] == len(is_open)
