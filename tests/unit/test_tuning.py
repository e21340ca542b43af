"""The margin of a cascade, chosen by arithmetic that is checked against trying all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigurationError
from tasks.optimisation.tuning import (
    STEPS,
    Seen,
    choose_margin,
    expected_rate,
    figures,
    is_held_out,
    wilson,
)


def seen(*answers: tuple[int, int, float]) -> Seen:
    """Images as (small's label, large's label, small's margin)."""
    small, large, margins = zip(*answers, strict=True)
    keys = tuple(f"{number}.jpg" for number in range(len(answers)))
    return Seen(keys, np.array(small, np.int64), np.array(large, np.int64), np.array(margins, np.float64))


def test_an_image_goes_on_below_the_margin_and_not_at_it() -> None:
    sample = seen((1, 1, 0.9), (1, 2, 0.4), (3, 4, 0.39), (5, 5, 0.1))
    found = figures(sample, 0.4, {"0.jpg": 1, "1.jpg": 2, "2.jpg": 4})
    assert (found.went_on, found.agreeing, found.images) == (2, 3, 4)
    assert (found.labelled, found.right) == (3, 2)


def test_the_margin_lies_just_above_the_last_image_that_must_go_on() -> None:
    sample = seen((1, 2, 0.41237), (1, 1, 0.9), (1, 2, 0.7), (1, 1, 0.2))
    assert choose_margin(sample, 0.75) == 0.4124
    assert choose_margin(sample, 1.0) == 0.7001
    assert choose_margin(sample, 0.5) == 0.0
    assert choose_margin(seen((1, 2, 0.99999)), 1.0) == 1.0


def test_a_small_model_that_is_certain_and_differs_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"certain \(a margin of 1\) of 1 of 2 images"):
        choose_margin(seen((1, 2, 1.0), (1, 1, 0.5)), 0.9)


labels = st.integers(0, 2)
samples = st.lists(st.tuples(labels, labels, st.integers(0, STEPS - 1).map(lambda step: step / STEPS)), min_size=1)


@given(samples, st.floats(0, 1))
def test_no_smaller_margin_agrees_often_enough(answers: list[tuple[int, int, float]], wanted: float) -> None:
    sample = seen(*answers)
    margin = choose_margin(sample, wanted)
    assert figures(sample, margin, {}).agreement >= wanted - 1e-9
    if margin > 0:
        assert figures(sample, (round(margin * STEPS) - 1) / STEPS, {}).agreement < wanted


def test_bounds_are_wilsons() -> None:
    """97 of 100: the bounds that any table of Wilson's interval has."""
    assert wilson(97, 100) == pytest.approx((0.9155, 0.9897), abs=5e-5)
    low, high = wilson(50, 50)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(1 / (1 + 1.96**2 / 50))


def test_half_of_the_keys_are_held_out_and_always_the_same() -> None:
    keys = [f"photos/{number:05}.jpg" for number in range(4_000)]
    held = [key for key in keys if is_held_out(key, 0.5)]
    assert math.isclose(len(held) / len(keys), 0.5, abs_tol=0.03)
    assert held == [key for key in keys if is_held_out(key, 0.5)]
    assert set(held) > {key for key in keys if is_held_out(key, 0.2)}
    assert not any(is_held_out(key, 0) for key in keys)


def test_rates_add_up_by_the_time_that_an_image_takes() -> None:
    assert expected_rate((1000.0, 100.0), 0.1) == pytest.approx(1 / (0.001 + 0.1 * 0.01))
    assert expected_rate((1000.0, 100.0), 0.0) == pytest.approx(1000)
