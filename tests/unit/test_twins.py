"""The same bytes twice in flight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from tasks.cache.outcome import Failed, Scored
from tasks.inference.reading import Work
from tasks.inference.twins import Twins
from tasks.storage.base import ImageObject

SCORED = Scored(0, "cat", 0.9, 0.8, 0.1, ())


def work(key: str, digest: bytes = b"same") -> Work:
    image = ImageObject(key, "etag", 4, datetime(2026, 3, 1, tzinfo=UTC))
    return Work(image, image, digest, b"data", was_read=True)


def test_the_first_leads_and_its_twins_wait() -> None:
    twins = Twins()

    assert twins.lead(work("first"))
    assert not twins.lead(work("second"))
    assert not twins.lead(work("third"))


def test_other_bytes_lead_for_themselves() -> None:
    twins = Twins()

    assert twins.lead(work("first", b"one"))
    assert twins.lead(work("second", b"two"))


def test_a_twin_lets_its_bytes_go_while_it_waits() -> None:
    twins, leader, twin = Twins(), work("first"), work("second")
    twins.lead(leader)
    twins.lead(twin)

    assert twin.data is None
    assert leader.data == b"data"


def test_twins_of_a_prediction_are_reused_under_their_own_keys() -> None:
    twins, leader = Twins(), work("first")
    followers = [work("second"), work("third")]
    for each in (leader, *followers):
        twins.lead(each)
    leader.succeed(SCORED)

    released = twins.release(leader)

    assert released == followers
    for twin in released:
        assert twin.finished is not None
        assert (twin.finished.key, twin.finished.digest) == (twin.listed.key, b"same")
        assert twin.finished.scored is None
        assert twin.finished.failed is None


def test_twins_of_a_reused_leader_are_reused() -> None:
    twins, leader, twin = Twins(), work("first"), work("second")
    twins.lead(leader)
    twins.lead(twin)
    leader.reuse()

    assert twins.release(leader) == [twin]
    assert twin.finished is not None
    assert twin.finished.failed is None


def test_twins_of_a_failure_fail_for_the_same_reason() -> None:
    twins, leader, twin = Twins(), work("first"), work("second")
    twins.lead(leader)
    twins.lead(twin)
    leader.fail("nonfinite_output", "It is not finite.", permanent=False)

    assert twins.release(leader) == [twin]
    assert twin.finished is not None
    assert twin.finished.failed == Failed("nonfinite_output", "It is not finite.", permanent=False)
    assert twin.finished.image == twin.listed


def test_after_the_release_the_next_one_leads_again() -> None:
    twins, leader = Twins(), work("first")
    twins.lead(leader)
    leader.succeed(SCORED)
    twins.release(leader)

    assert twins.lead(work("later"))


def test_what_was_never_read_has_no_twins() -> None:
    twins, gone = Twins(), Work(work("gone").listed)
    twins.lead(work("first"))
    gone.vanish()

    assert twins.release(gone) == []
    assert not twins.lead(work("second"))


def test_of_many_threads_exactly_one_leads() -> None:
    twins, gate = Twins(), threading.Barrier(8)

    def lead(number: int) -> int:
        gate.wait()
        return sum(twins.lead(work(f"{number}-{digest}", bytes([digest]))) for digest in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lead, range(8))) == 200


def test_a_twin_that_comes_while_its_leader_is_released_is_not_lost() -> None:
    """It has seen its leader and is about to wait for it, when the leader's commit asks who waits."""
    twins, leader, twin = Twins(), work("first"), work("second")
    released: list[Work] = []

    class Paused(dict[bytes, list[Work]]):
        def __contains__(self, digest: object) -> bool:
            found = super().__contains__(digest)
            if found:
                release.start()
                release.join(0.2)  # without the lock it would end here, and the twin would wait for nobody
            return found

    twins.lead(leader)
    leader.succeed(SCORED)
    release = threading.Thread(target=lambda: released.extend(twins.release(leader)))
    twins._followers = Paused(twins._followers)

    leads = twins.lead(twin)
    release.join()

    assert not leads
    assert released == [twin]
