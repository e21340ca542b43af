"""The queue between two stages: bounded in items and in bytes, and aware of who waited."""

from __future__ import annotations

import threading
import time

import pytest

from tasks.inference.queues import Empty, Queue
from tasks.inference.stages import Buffered, Parallel, Room
from tests.unit.test_stages import Source, eventually, stays


def test_items_come_out_in_order() -> None:
    queue: Queue[int] = Queue(10, 100)
    for number in range(5):
        assert queue.put(number, 1, 0.0)
    assert [queue.get(0.0) for _ in range(5)] == list(range(5))


def test_a_full_queue_takes_no_more_items() -> None:
    queue: Queue[int] = Queue(2, 100)
    assert queue.put(1, 0, 0.0)
    assert queue.put(2, 0, 0.0)
    assert not queue.put(3, 0, 0.01)
    queue.get(0.0)
    assert queue.put(3, 0, 0.0)


def test_a_heavy_queue_takes_no_more_bytes() -> None:
    queue: Queue[str] = Queue(100, 10)
    assert queue.put("six", 6, 0.0)
    assert not queue.put("five", 5, 0.01)
    assert queue.put("four", 4, 0.0)
    assert queue.bytes == 10
    queue.get(0.0)
    assert queue.bytes == 4


def test_what_is_too_heavy_alone_goes_through_alone() -> None:
    queue: Queue[str] = Queue(100, 10)
    assert queue.put("whale", 1_000, 0.0)
    assert not queue.put("fly", 1, 0.01)
    assert queue.get(0.0) == "whale"
    assert queue.put("fly", 1, 0.0)


def test_an_empty_queue_says_so_in_time() -> None:
    with pytest.raises(Empty):
        Queue[int](1, 1).get(0.01)


def test_it_knows_how_long_each_side_waited() -> None:
    queue: Queue[int] = Queue(1, 100)
    with pytest.raises(Empty):
        queue.get(0.05)
    queue.put(1, 0, 0.0)
    assert not queue.put(2, 0, 0.1)
    queue.get(0.0)

    assert 0.04 <= queue.empty_seconds < 0.09
    assert 0.09 <= queue.full_seconds < 0.5


def test_nobody_waits_where_there_is_room_and_work() -> None:
    queue: Queue[int] = Queue(1000, 10_000)
    for number in range(1000):
        queue.put(number, 1, 1.0)
        queue.get(1.0)
    assert queue.empty_seconds == queue.full_seconds == 0.0


def test_who_waits_for_room_goes_on_as_soon_as_there_is_some() -> None:
    queue: Queue[int] = Queue(1, 100)
    queue.put(1, 0, 0.0)
    thread = threading.Thread(target=queue.put, args=(2, 0, 5.0))
    started = time.monotonic()
    thread.start()
    queue.get(0.0)
    thread.join()
    assert time.monotonic() - started < 2
    assert queue.get(0.0) == 2


def test_a_buffer_stops_at_its_bytes() -> None:
    source = Source()
    buffer = Buffered(source, Room(1_000, 100, lambda _: 40))

    assert eventually(lambda: source.given == 3)  # two in the queue, one in hand
    assert stays(lambda: source.given == 3)
    buffer.close()


def test_parallel_starts_no_more_than_its_bytes() -> None:
    gate, source = threading.Event(), Source()
    results = Parallel(lambda number: gate.wait(5) and number, source, workers=50, ahead=Room(1_000, 100, lambda _: 40))

    assert eventually(lambda: source.given == 3)
    assert stays(lambda: source.given == 3)
    gate.set()
    results.close()


def test_a_group_is_no_heavier_than_the_queue() -> None:
    source = Source(ends_after=20)
    buffer = Buffered(source, Room(100, 100, lambda _: 30))
    groups = buffer.groups(64)

    assert max(len(group) for group in groups) <= 4  # what fills the bytes, and the one that steps over
