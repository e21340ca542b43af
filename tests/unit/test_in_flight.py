"""The number of objects in flight: it finds what the store can do, in virtual time, and holds threads to it in real time."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import fmean

import pytest

from tasks.errors import AccessDenied, TransientStorageError
from tasks.inference.in_flight import ANEW_AFTER_WINDOWS, LEAST, WINDOW_READS, InFlight, Limit

MOST = 64


@dataclass
class Simulated:
    """A store that serves `capacity` reads at once, each in `seconds`, the others waiting; time is a number.

    It refuses what goes beyond `allowance`. `demand` is how many the caller could use.
    """

    seconds: Callable[[float, random.Random], float] = lambda _now, _chance: 0.1
    capacity: int = 10_000
    allowance: Callable[[float], int] = lambda _now: 10_000
    demand: int = 10_000
    most: int = MOST
    prepare: Callable[[Limit], None] = lambda _limit: None
    chance: random.Random = field(default_factory=lambda: random.Random(20_260_301))

    def run(self, reads: int) -> list[tuple[float, float]]:
        """(moment, limit) after each read."""
        self.limit, self.now, self.inside = Limit(self.most), 0.0, 0
        self.prepare(self.limit)
        self.free = [0.0] * self.capacity
        flying: list[tuple[float, int, float, bool]] = []
        numbers, history = itertools.count(), []
        while len(history) < reads:
            while self.inside < min(self.demand, int(self.limit.value)):
                self.inside += 1
                heapq.heappush(flying, (*self._send(next(numbers)), True))
            self.now, number, started, _ = heapq.heappop(flying)
            (self.limit.refused if number < 0 else self._succeed)(started, self.now)
            self.inside -= 1
            history.append((self.now, self.limit.value))
        return history

    def _send(self, number: int) -> tuple[float, int, float]:
        if self.inside > self.allowance(self.now):
            return self.now + 0.02, -number - 1, self.now
        begins = max(self.now, heapq.heappop(self.free))
        ends = begins + self.seconds(self.now, self.chance)
        heapq.heappush(self.free, ends)
        return ends, number, self.now

    def _succeed(self, started: float, now: float) -> None:
        self.limit.succeeded(started, now, self.inside)


def settled(history: list[tuple[float, float]]) -> float:
    """The mean limit over the second half of the reads."""
    return fmean(limit for _, limit in history[len(history) // 2 :])


def test_a_store_at_a_distance_without_limits_gets_the_most() -> None:
    history = Simulated().run(20_000)

    assert history[0][1] == LEAST
    assert next(now for now, limit in history if limit == MOST) < 5
    assert settled(history) > 0.9 * MOST


@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0])
def test_latency_that_varies_by_nature_is_not_taken_for_a_queue(spread: float) -> None:
    history = Simulated(lambda _now, chance: 0.1 * chance.lognormvariate(0, spread)).run(20_000)

    assert next(now for now, limit in history if limit == MOST) < 10
    assert settled(history) > 0.8 * MOST


def test_sizes_that_vary_are_not_taken_for_a_queue() -> None:
    history = Simulated(lambda _now, chance: chance.choice([0.05, 0.06, 0.5])).run(20_000)

    assert settled(history) > 0.8 * MOST


@pytest.mark.parametrize("at_once", [4, 8, 16, 24, 32])
@pytest.mark.parametrize("varies", [False, True])
def test_a_store_that_serves_some_at_once_gets_about_as_many(at_once: int, varies: bool) -> None:
    def seconds(_now: float, chance: random.Random) -> float:
        return 0.02 + 0.03 * (chance.expovariate(1) if varies else 1)

    history = Simulated(seconds, at_once).run(20_000)

    # The queue that is allowed for, sqrt(limit), weighs most where the number is small.
    assert at_once <= settled(history) <= 2.1 * at_once
    assert history[-1][0] < 1.1 * 20_000 * 0.05 / at_once, "nothing of the store's speed is lost"


def test_a_store_that_gets_slower_for_all_is_measured_anew() -> None:
    """Another folder, with objects of three times the size: within seconds, while 100 windows would take half a minute."""
    history = Simulated(lambda now, _chance: 0.1 if now < 20 else 0.3).run(20_000)

    assert history[-1][0] > 40
    assert min(limit for now, limit in history if 28 < now < 32) == MOST


def test_a_quickest_time_that_is_out_of_reach_is_forgotten_in_the_end() -> None:
    """Too low by half, and the limit at its balance, so that nothing sinks any more."""

    def prepare(limit: Limit) -> None:
        limit.value = limit._highest = 9.0
        limit._quickest = 0.05

    history = Simulated(prepare=prepare).run(10_000)

    assert history[1_000][1] < 10
    assert history[-1][1] == MOST


def test_a_store_that_was_quick_only_at_first_is_measured_anew_where_no_fewer_can_be_in_flight() -> None:
    """One window comes out of a cache: too little for the limit to have a half to lose."""
    history = Simulated(lambda now, _chance: 0.001 if now < 0.0075 else 0.1).run(5_000)

    assert next(now for now, limit in history if limit == MOST) < 10


def test_a_store_that_others_use_too_is_given_way() -> None:
    simulated = Simulated(capacity=64)
    simulated.seconds = lambda now, _chance: 0.1 if now < 20 else 0.1 * 8  # 8 servers' worth is left
    simulated.capacity = 8
    history = simulated.run(6_000)

    assert settled(history) <= 2.1 * 8


def test_a_store_that_refuses_halves_the_limit_at_once_and_once_for_all_on_their_way() -> None:
    limit = Limit(MOST)
    limit.value = 64.0
    for _ in range(64):
        limit.refused(started=1.0, now=2.0)
    assert limit.value == 32
    limit.refused(started=2.5, now=3.0)
    assert limit.value == 16
    for moment in range(4, 20):
        limit.refused(float(moment), float(moment))
    assert limit.value == LEAST


def test_a_refusal_while_the_quickest_time_is_taken_anew_counts() -> None:
    limit = Limit(MOST)
    limit.value = limit._highest = 64.0
    limit._quickest = 0.1
    limit._windows = ANEW_AFTER_WINDOWS
    for number in range(64):
        limit.succeeded(1.0, 1.1, 64 - number)
    assert limit.value == 16, "it is being taken anew"
    limit.refused(started=1.2, now=1.3)
    assert limit.value == 8
    for _ in range(WINDOW_READS):
        limit.succeeded(1.4, 1.5, 8)

    assert limit.value < 16


def test_a_prefix_that_is_throttled_is_not_asked_for_more_for_long_and_recovers() -> None:
    history = Simulated(allowance=lambda now: 20 if 10 < now < 40 else 10_000).run(20_000)
    throttled = [limit for now, limit in history if 12 < now < 40]

    assert max(throttled) <= 1.5 * 20
    assert fmean(throttled) > 0.5 * 20
    assert next(now for now, limit in history if now > 40 and limit == MOST) < 45


@pytest.mark.parametrize(("seconds", "expected"), [(0.0001, LEAST), (0.001, 10), (0.005, 50)])
def test_where_reads_are_quick_few_are_enough(seconds: float, expected: int) -> None:
    history = Simulated(lambda _now, _chance: seconds).run(20_000)

    assert max(limit for _, limit in history) <= expected + 1e-6
    assert settled(history) >= 0.9 * expected


def test_the_limit_does_not_grow_where_nobody_uses_it() -> None:
    history = Simulated(demand=5).run(10_000)

    assert history[-1][1] <= 2 * 5 + 4


@pytest.mark.parametrize("most", [1, 2, 4, 5])
def test_the_most_is_never_exceeded(most: int) -> None:
    history = Simulated(most=most).run(2_000)

    assert {limit for _, limit in history} <= {most, *(limit for _, limit in history if limit <= most)}
    assert settled(history) > 0.9 * most


# Threads


class Watched:
    """Counts who is inside."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_error: object) -> None:
        with self.lock:
            self.inside -= 1


def test_no_more_threads_are_inside_than_the_limit_ever_was() -> None:
    in_flight, watched = InFlight(16), Watched()
    highest: list[int] = []

    def read(_number: int) -> None:
        with in_flight.one(), watched:
            highest.append(in_flight.limit)
            time.sleep(0.002)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(read, range(2_000)))

    assert LEAST < watched.most <= max(highest) <= 16


def test_threads_that_wait_go_on_when_the_limit_shrinks_below_those_inside() -> None:
    in_flight = InFlight(32)
    in_flight._limit.value = 32.0
    random_numbers = random.Random(7)
    refuses = [random_numbers.random() < 0.2 for _ in range(3_000)]

    def read(number: int) -> int:
        try:
            with in_flight.one():
                time.sleep(0.0005)
                if refuses[number]:
                    raise TransientStorageError("503 SlowDown")
        except TransientStorageError:
            pass
        return number

    with ThreadPoolExecutor(48) as pool:
        assert list(pool.map(read, range(3_000), timeout=60)) == list(range(3_000))
    assert in_flight._inside == 0


def test_an_error_goes_through_and_gives_the_room_back() -> None:
    in_flight = InFlight(8)
    in_flight._limit.value = 8.0
    for _ in range(20):
        with pytest.raises(AccessDenied), in_flight.one():
            raise AccessDenied("403")
    assert (in_flight.limit, in_flight._inside) == (8, 0)

    with pytest.raises(TransientStorageError), in_flight.one():
        raise TransientStorageError("503")
    assert (in_flight.limit, in_flight._inside) == (4, 0)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_closing_lets_those_who_wait_go() -> None:
    in_flight, release = InFlight(1), threading.Event()
    told: list[bool] = []

    def read() -> None:
        with in_flight.one() as may_read:
            told.append(may_read)
            release.wait(20)

    with ThreadPoolExecutor(5) as pool:
        for _ in range(5):
            pool.submit(read)
        wait_until(lambda: bool(told) and len(in_flight._room._waiters) == 4)  # type: ignore[attr-defined]
        assert told == [True]
        in_flight.close()
        wait_until(lambda: len(told) == 5)
        assert told == [True, False, False, False, False]
        release.set()


def test_all_for_whom_there_is_room_go_on_when_the_limit_grows() -> None:
    in_flight = InFlight(8)
    in_flight._limit.value = 1.0
    together, first = threading.Barrier(5), in_flight.one()
    first.__enter__()

    def read() -> None:
        with in_flight.one():
            together.wait(10)

    with ThreadPoolExecutor(5) as pool:
        reads = [pool.submit(read) for _ in range(5)]
        wait_until(lambda: len(in_flight._room._waiters) == 5)  # type: ignore[attr-defined]
        in_flight._limit.value = 8.0
        first.__exit__(None, None, None)
        for each in reads:
            each.result(20)


def test_the_time_of_waiting_for_room_is_not_the_stores() -> None:
    now = [0.0]
    in_flight = InFlight(8, clock=lambda: now[0])
    one = in_flight.one()
    now[0] = 100.0
    with one:
        now[0] = 100.5

    assert in_flight._limit._seconds == [0.5]


def test_it_costs_microseconds() -> None:
    in_flight = InFlight(64)

    def rounds() -> float:
        started = time.thread_time()
        for _ in range(5_000):
            with in_flight.one():
                pass
        return (time.thread_time() - started) / 5_000

    assert min(rounds() for _ in range(5)) < 20e-6
    assert in_flight.limit == LEAST
