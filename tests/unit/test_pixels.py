"""Memory for decoded pictures: used again, and never for two pictures at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tasks.inference.pixels import PixelSlots


def filled(slots: PixelSlots, level: int) -> np.ndarray:
    slot = slots.take()
    slot[...] = level
    return slot


def test_a_batch_holds_its_pictures_in_order_and_lets_their_slots_go() -> None:
    slots = PixelSlots(4)
    pictures = [filled(slots, level) for level in (1, 2, 3)]

    batch = slots.gather(pictures, np.empty((5, 4, 4, 3), np.uint8))

    assert batch.shape == (3, 4, 4, 3)
    assert batch[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert {id(slots.take()) for _ in range(3)} == {id(picture) for picture in pictures}


def test_a_picture_decoded_meanwhile_does_not_change_the_batch() -> None:
    slots = PixelSlots(4)
    memory = np.empty((2, 4, 4, 3), np.uint8)
    batch = slots.gather([filled(slots, 1), filled(slots, 2)], memory)
    filled(slots, 9)

    assert batch[:, 0, 0, 0].tolist() == [1, 2]
    assert slots.gather([filled(slots, 5)], memory)[:, 0, 0, 0].tolist() == [5]


def test_a_slot_belongs_to_one_taker_at_a_time() -> None:
    slots = PixelSlots(4)

    def use(level: int) -> bool:
        slot = filled(slots, level)
        whole = bool((slot == level).all())
        slots.give(slot)
        return whole

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, [number % 251 for number in range(4000)]))
