"""Is it the image, or is it the world?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tasks.cache.outcome import Scored
from tasks.errors import GlobalFault
from tasks.inference.reading import ACCESS_DENIED, STORAGE_ERROR, Work
from tasks.inference.verdict import CONSECUTIVE_LIMIT, NONFINITE_OUTPUT, Verdict
from tasks.storage.base import ImageObject


class Storage:
    """Answers whether another object can be read, and remembers who was suspected."""

    def __init__(self, works: bool) -> None:
        self.works = works
        self.asked: list[list[str]] = []

    def __call__(self, held: list[Work]) -> bool:
        self.asked.append([work.listed.key for work in held])
        return self.works


def listed(key: str) -> ImageObject:
    return ImageObject(key, "etag", 4, datetime(2026, 3, 1, tzinfo=UTC))


def unread(key: str, reason: str = ACCESS_DENIED) -> Work:
    work = Work(listed(key))
    work.fail(reason, f"{key} may not be read.", permanent=False)
    return work


def read(key: str) -> Work:
    return Work(listed(key), listed(key), b"digest", was_read=True)


def predicted(key: str) -> Work:
    work = read(key)
    work.succeed(Scored(0, "cat", 0.9, 0.8, 0.1, ()))
    return work


def nonfinite(key: str) -> Work:
    work = read(key)
    work.fail(NONFINITE_OUTPUT, f"{key} gives NaN.", permanent=False)
    return work


def broken(key: str) -> Work:
    work = read(key)
    work.fail("truncated", "The file is damaged.", permanent=True)
    return work


def vanished(key: str) -> Work:
    work = Work(listed(key))
    work.vanish()
    return work


@pytest.mark.parametrize("make", [predicted, broken, vanished])
def test_what_lies_in_the_image_goes_straight_on(make: type) -> None:
    work, storage = make("a"), Storage(works=False)

    assert Verdict(storage).judge(work) == [work]
    assert storage.asked == []


def test_what_was_read_before_a_suspect_failed_proves_nothing() -> None:
    """As images that wait for a batch while credentials expire."""
    verdict, suspect, before, after = Verdict(Storage(works=False)), unread("b"), broken("a"), broken("c")
    before.began, before.ended = 1.0, 2.0
    suspect.began, suspect.ended = 1.5, 3.0
    after.began, after.ended = 3.0, 4.0

    assert verdict.judge(suspect) == []
    assert verdict.judge(before) == [before]
    assert verdict.judge(after) == [suspect, after]


@pytest.mark.parametrize("reason", [ACCESS_DENIED, STORAGE_ERROR])
def test_a_storage_suspect_is_held_until_something_is_read(reason: str) -> None:
    verdict, suspect, proof = Verdict(Storage(works=False)), unread("a", reason), broken("b")

    assert verdict.judge(suspect) == []
    assert verdict.judge(proof) == [suspect, proof]


def test_what_vanished_proves_nothing() -> None:
    verdict, gone = Verdict(Storage(works=False)), vanished("b")
    verdict.judge(unread("a"))

    assert verdict.judge(gone) == [gone]


def test_a_model_suspect_is_held_until_something_is_predicted() -> None:
    verdict, suspect, damaged, proof = Verdict(Storage(works=True)), nonfinite("a"), broken("b"), predicted("c")

    assert verdict.judge(suspect) == []
    assert verdict.judge(damaged) == [damaged]
    assert verdict.judge(proof) == [suspect, proof]


def test_a_model_suspect_was_read_and_so_clears_storage() -> None:
    verdict, denied, suspect = Verdict(Storage(works=False)), unread("a"), nonfinite("b")
    verdict.judge(denied)

    assert verdict.judge(suspect) == [denied]


def test_twenty_unreadable_objects_are_a_global_fault_where_no_other_can_be_read() -> None:
    storage = Storage(works=False)
    verdict = Verdict(storage)
    for number in range(CONSECUTIVE_LIMIT - 1):
        assert verdict.judge(unread(f"{number}")) == []

    with pytest.raises(GlobalFault, match=r"Objects cannot be read: 20 in a row.*0 may not be read.*Nothing was quar"):
        verdict.judge(unread("last"))
    assert storage.asked == [[*map(str, range(CONSECUTIVE_LIMIT - 1)), "last"]]


def test_twenty_unreadable_objects_are_to_blame_where_another_can_be_read() -> None:
    verdict = Verdict(Storage(works=True))
    suspects = [unread(f"{number}") for number in range(CONSECUTIVE_LIMIT)]

    assert [verdict.judge(suspect) for suspect in suspects[:-1]] == [[]] * (CONSECUTIVE_LIMIT - 1)
    assert verdict.judge(suspects[-1]) == suspects


def test_a_success_between_them_starts_the_count_anew() -> None:
    storage = Storage(works=False)
    verdict = Verdict(storage)
    for number in range(3 * CONSECUTIVE_LIMIT):
        verdict.judge(predicted(f"{number}") if number % CONSECUTIVE_LIMIT == 0 else unread(f"{number}"))

    assert storage.asked == []


def test_twenty_outputs_that_are_not_finite_are_a_global_fault_even_where_storage_works() -> None:
    verdict = Verdict(Storage(works=True))
    for number in range(CONSECUTIVE_LIMIT - 1):
        verdict.judge(nonfinite(f"{number}"))

    with pytest.raises(GlobalFault, match="gives nothing that can be used: 20 in a row"):
        verdict.judge(nonfinite("last"))


def test_the_kinds_are_counted_apart() -> None:
    verdict = Verdict(Storage(works=False))
    for number in range(CONSECUTIVE_LIMIT - 1):
        verdict.judge(nonfinite(f"model-{number}"))
    for number in range(CONSECUTIVE_LIMIT - 1):
        assert verdict.judge(unread(f"storage-{number}")) == []


def test_at_the_end_suspects_are_a_global_fault_where_nothing_can_be_read() -> None:
    verdict = Verdict(Storage(works=False))
    verdict.judge(unread("only"))

    with pytest.raises(GlobalFault, match="1 in a row"):
        verdict.close()


def test_at_the_end_suspects_are_to_blame_where_another_object_can_be_read() -> None:
    verdict, suspect = Verdict(Storage(works=True)), unread("only")
    verdict.judge(suspect)

    assert verdict.close() == [suspect]


def test_a_storage_that_worked_earlier_and_is_gone_at_the_end_is_a_global_fault() -> None:
    storage = Storage(works=False)
    verdict, suspect = Verdict(storage), unread("b")
    verdict.judge(predicted("a"))
    verdict.judge(suspect)

    with pytest.raises(GlobalFault, match="Nothing was quarantined"):
        verdict.close()
    assert storage.asked != []


def test_at_the_end_a_few_outputs_that_are_not_finite_are_the_images_own() -> None:
    verdict, suspect = Verdict(Storage(works=False)), nonfinite("a")
    verdict.judge(suspect)

    assert verdict.close() == [suspect]


def test_at_the_end_of_a_clean_shard_nothing_is_asked() -> None:
    storage = Storage(works=False)

    assert Verdict(storage).close() == []
    assert storage.asked == []


def test_no_work_is_released_twice_or_lost() -> None:
    verdict = Verdict(Storage(works=True))
    makers = [unread, nonfinite, predicted, broken, vanished]
    works = [makers[(number * 7 + number // 3) % 5](f"{number}") for number in range(500)]

    released = [work for each in works for work in verdict.judge(each)] + verdict.close()

    assert sorted(id(work) for work in released) == sorted(id(work) for work in works)
