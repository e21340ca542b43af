"""Stages side by side: order, bounds, errors, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tasks.inference.stages import Buffered, Parallel, Room


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test must end with the threads that it began with."""
    before = set(threading.enumerate())
    yield
    assert eventually(lambda: set(threading.enumerate()) <= before), threading.enumerate()


class Source:
    """Counts up for ever; knows how far it was asked and whether it was closed."""

    def __init__(self, ends_after: int | None = None, error: Exception | None = None) -> None:
        self.given = 0
        self.closed = False
        self._ends_after = ends_after
        self._error = error

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.given == self._ends_after:
            raise self._error or StopIteration
        self.given += 1
        return self.given - 1

    def close(self) -> None:
        self.closed = True


def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds()


def stays(holds: Callable[[], bool], seconds: float = 0.1) -> bool:
    """Whether something is so, and still so after a moment in which a faulty thread would have gone on."""
    time.sleep(seconds)
    return holds()


def test_parallel_keeps_the_order_of_the_source() -> None:
    def slower_at_first(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0)
        return -number

    assert list(Parallel(slower_at_first, iter(range(40)), workers=4, ahead=Room(8))) == [-n for n in range(40)]


def test_parallel_works_side_by_side() -> None:
    gate = threading.Barrier(4, timeout=5)

    assert list(Parallel(lambda _: gate.wait() >= 0, iter(range(4)), workers=4, ahead=Room(4))) == [True] * 4


def test_parallel_takes_no_more_from_its_source_than_it_may() -> None:
    gate, source = threading.Event(), Source()

    def work(number: int) -> int:
        gate.wait(5)
        return number

    results = Buffered(Parallel(work, source, workers=2, ahead=Room(5)), Room(1))
    assert eventually(lambda: source.given == 5)
    assert stays(lambda: source.given == 5)
    gate.set()
    results.close()
    assert source.closed


def test_what_is_done_goes_on_while_the_source_keeps_us_waiting() -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        gate.wait(5)

    results = Buffered(Parallel(lambda number: number, source(), workers=1, ahead=Room(8)), Room(8))
    assert [results.get(timeout=2.0) for _ in range(2)] == [1, 2]
    gate.set()
    results.close()


def test_once_it_is_told_to_stop_a_chain_ends_though_a_call_hangs() -> None:
    gate, stop = threading.Event(), threading.Event()
    chain = Buffered(
        Buffered(Parallel(lambda _: gate.wait(5), Source(), 2, Room(4), stop), Room(4), stop), Room(4), stop
    )
    started = time.monotonic()
    stop.set()
    chain.close()
    with pytest.raises(StopIteration):
        chain.get()
    assert time.monotonic() - started < 2
    gate.set()


def test_parallel_hands_on_what_is_left_at_the_end() -> None:
    assert list(Parallel(str, iter(range(3)), workers=2, ahead=Room(100))) == ["0", "1", "2"]
    assert list(Parallel(str, iter([]), workers=2, ahead=Room(100))) == []


def test_an_error_in_parallel_work_comes_out_in_its_place_and_closes_the_source() -> None:
    def refuse(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    source, results = Source(), []
    with pytest.raises(ValueError, match="three"):
        results.extend(Parallel(refuse, source, 2, Room(4)))

    assert source.closed
    assert eventually(lambda: source.closed)
    assert source.given < 100


def test_items_before_an_error_still_come_out() -> None:
    results = Parallel(lambda number: 1 // (2 - number), iter(range(5)), workers=2, ahead=Room(4))

    assert (next(results), next(results)) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_parallel_starts_nothing_new() -> None:
    started: list[int] = []
    gate, source = threading.Event(), Source()

    def work(number: int) -> int:
        started.append(number)
        gate.wait(5)
        time.sleep(0.05)
        return number

    results = Buffered(Parallel(work, source, workers=1, ahead=Room(50)), Room(1))
    assert eventually(lambda: source.given == 50)
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    results.close()
    opener.join()

    assert len(started) <= 5


def test_a_buffer_hands_everything_on_in_order() -> None:
    assert list(Buffered(iter(range(100)), Room(3))) == list(range(100))


def test_a_buffer_holds_at_most_its_size_and_one_in_hand() -> None:
    source = Source()
    buffer = Buffered(source, Room(4))

    assert eventually(lambda: source.given == 5)
    assert stays(lambda: source.given == 5)
    buffer.get()
    assert eventually(lambda: source.given == 6)
    assert stays(lambda: source.given == 6)
    buffer.close()


def test_a_buffer_runs_ahead_of_who_takes() -> None:
    source = Source(ends_after=3)
    buffer = Buffered(source, Room(10))

    assert eventually(lambda: source.closed)
    assert list(buffer) == [0, 1, 2]


def test_the_end_is_stop_iteration_again_and_again() -> None:
    buffer = Buffered(iter([1]), Room(2))

    assert buffer.get() == 1
    for _ in range(3):
        with pytest.raises(StopIteration):
            buffer.get(timeout=1)
    assert list(buffer) == []


def test_an_error_comes_out_after_the_items_before_it_again_and_again() -> None:
    buffer = Buffered(Source(ends_after=2, error=OSError("disk")), Room(10))

    assert (buffer.get(), buffer.get()) == (0, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            buffer.get()


def test_an_error_while_the_source_is_closed_comes_out_too() -> None:
    def source() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            raise OSError("at the close")

    buffer = Buffered(source(), Room(10))

    with pytest.raises(OSError, match="at the close"):
        list(buffer)


def test_get_gives_none_where_nothing_came_in_time() -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        gate.wait(5)
        yield 7

    buffer = Buffered(source(), Room(1))

    assert buffer.get(timeout=0.02) is None
    gate.set()
    assert buffer.get(timeout=5) == 7
    with pytest.raises(StopIteration):
        buffer.get(timeout=5)


def test_closing_stops_a_source_that_never_ends() -> None:
    source = Source()
    buffer = Buffered(source, Room(2))
    buffer.get()

    buffer.close()

    given = source.given
    assert source.closed
    assert stays(lambda: source.given == given)


def test_closing_twice_is_no_harm() -> None:
    buffer = Buffered(Source(), Room(2))

    buffer.close()
    buffer.close()


def test_after_the_close_there_is_an_end_and_no_waiting() -> None:
    buffer = Buffered(Source(), Room(2))
    buffer.close()

    with pytest.raises(StopIteration):
        buffer.get(timeout=5)


def test_groups_hold_all_items_in_order_and_are_never_empty_or_too_large() -> None:
    def source() -> Iterator[int]:
        for number in range(50):
            time.sleep(0.005 if number % 10 == 0 else 0)
            yield number

    groups = list(Buffered(source(), Room(20)).groups(7))

    assert [number for group in groups for number in group] == list(range(50))
    assert {len(group) for group in groups} <= set(range(1, 8))


def test_a_group_takes_what_is_ready_and_does_not_wait_for_more() -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        yield from (1, 2)
        gate.wait(10)
        yield 3

    buffer = Buffered(source(), Room(10))
    assert eventually(lambda: len(buffer._queue) == 2)
    groups = buffer.groups(64)

    assert next(groups) == [1, 2]
    gate.set()
    assert list(groups) == [[3]]


def test_a_full_group_is_made_where_enough_is_ready() -> None:
    source = Source(ends_after=6)
    buffer = Buffered(source, Room(10))
    assert eventually(lambda: source.closed)

    assert list(buffer.groups(3)) == [[0, 1, 2], [3, 4, 5]]


def test_an_error_comes_out_of_groups() -> None:
    with pytest.raises(OSError, match="disk"):
        list(Buffered(Source(ends_after=5, error=OSError("disk")), Room(10)).groups(2))


def test_leaving_groups_closes_the_source() -> None:
    source = Source()
    groups = Buffered(source, Room(2)).groups(2)
    next(groups)

    groups.close()  # type: ignore[attr-defined]

    assert source.closed


def chain(source: Iterator[int], in_the_middle: Callable[[int], int]) -> Buffered[int]:
    """Read, look up in groups and decode, joined as a shard joins them."""

    def look_up(reads: Buffered[int]) -> Iterator[int]:
        for group in reads.groups(3):
            yield from (in_the_middle(number) for number in group)

    reads = Buffered(Parallel(lambda number: number, source, workers=4, ahead=Room(8)), Room(4))
    return Buffered(Parallel(lambda number: number, look_up(reads), workers=2, ahead=Room(4)), Room(4))


def test_a_chain_keeps_order() -> None:
    assert list(chain(iter(range(300)), lambda number: number * 2)) == [number * 2 for number in range(300)]


def test_closing_the_end_of_a_chain_stops_every_thread_before_it() -> None:
    before, source = threading.active_count(), Source()
    end = chain(source, lambda number: number)
    assert end.get() == 0
    assert threading.active_count() >= before + 2 + 4

    end.close()

    assert threading.active_count() == before
    assert source.closed


def test_an_error_in_the_middle_of_a_chain_comes_out_and_stops_every_thread() -> None:
    before, source = threading.active_count(), Source()

    def refuse(number: int) -> int:
        if number == 20:
            raise ValueError("twenty")
        return number

    end = chain(source, refuse)
    with pytest.raises(ValueError, match="twenty") as kept:
        list(end)

    end.close()
    assert eventually(lambda: threading.active_count() == before)
    assert source.closed
    assert kept.value.__traceback__ is not None  # Whoever keeps the error keeps no thread.


def test_an_error_in_the_source_of_a_chain_comes_out_at_its_end() -> None:
    with pytest.raises(OSError, match="disk"):
        list(chain(Source(ends_after=50, error=OSError("disk")), lambda number: number))


def test_a_chain_holds_a_bounded_number_of_items() -> None:
    source = Source()
    end = chain(source, lambda number: number)

    for _ in range(100):
        end.get()
    assert eventually(lambda: source.given > 100)
    assert stays(lambda: source.given <= 100 + (8 + 4 + 1) + 3 + (4 + 4 + 1))
    end.close()


def test_a_stage_that_finds_no_memory_to_tell_of_its_end_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(buffered: Buffered[int], item: object, weight: int) -> bool:
        if not isinstance(item, int):
            raise MemoryError
        return original(buffered, item, weight)

    original = Buffered._put
    monkeypatch.setattr(Buffered, "_put", put)
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)
    buffered = Buffered(iter([1, 2]), Room(4))
    assert [next(buffered), next(buffered)] == [1, 2]
    with pytest.raises(MemoryError, match="could not say why"):
        next(buffered)
