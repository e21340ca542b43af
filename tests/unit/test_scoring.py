"""From logits to labels and scores."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.cache.outcome import Scored
from tasks.inference.scoring import score, softmax

LABELS = ("a", "b", "c", "d")

batches = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-30, 30, width=32),
)


def logits(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32)


def scored(*row: float, top_k: int = 2, labels: tuple[str, ...] = LABELS) -> Scored:
    found = score(logits(row), labels, top_k)[0]
    assert found is not None
    return found


@given(batches)
def test_softmax_is_torchs(batch: npt.NDArray[np.float32]) -> None:
    expected = torch.softmax(torch.from_numpy(batch).to(torch.float64), dim=1).numpy()

    np.testing.assert_allclose(softmax(batch), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(softmax(batch).sum(axis=1), 1.0)


def names(found: Scored) -> list[str]:
    return [found.label, *(LABELS[index] for index, _ in found.entries)]


def test_the_best_label_comes_with_its_index_and_score() -> None:
    found = scored(0.0, 3.0, 1.0, 2.0, top_k=3)
    total = sum(math.exp(value) for value in (0, 1, 2, 3))

    assert (found.label_index, found.label) == (1, "b")
    assert found.score == pytest.approx(math.exp(3) / total)
    assert names(found) == ["b", "d", "c"]
    assert [value for _, value in found.entries] == pytest.approx([math.exp(2) / total, math.exp(1) / total])


@given(st.permutations([0.0, 1.0, 2.0, 3.0]))
def test_top_k_goes_down(row: list[float]) -> None:
    found = scored(*row, top_k=4)

    assert names(found) == [LABELS[row.index(value)] for value in (3.0, 2.0, 1.0, 0.0)]


def test_ties_go_to_the_lower_index() -> None:
    found = scored(1.0, 5.0, 5.0, 5.0, top_k=3)

    assert found.label == "b"
    assert names(found) == ["b", "c", "d"]
    assert found.margin == 0.0


def test_ties_go_to_the_lower_index_among_many_labels_too() -> None:
    """numpy's default sort keeps the order of equal values in short rows only."""
    row = np.random.default_rng(0).integers(0, 3, 1_000).astype(np.float32)
    expected = sorted(range(1_000), key=lambda index: (-row[index], index))

    found = scored(*row.tolist(), top_k=1_000, labels=tuple(map(str, range(1_000))))

    assert [found.label_index, *(index for index, _ in found.entries)] == expected


@given(batches)
def test_margin_and_entropy_follow_their_formulas(batch: npt.NDArray[np.float32]) -> None:
    labels = [str(number) for number in range(batch.shape[1])]
    for row, found in zip(softmax(batch), score(batch, labels, 1), strict=True):
        assert found is not None
        best = sorted(row, reverse=True)
        second = best[1] if len(best) > 1 else 0.0
        assert found.margin == pytest.approx(best[0] - second, abs=1e-12)
        assert found.entropy == pytest.approx(-sum(value * math.log(value) for value in row if value > 0), abs=1e-12)
        assert 0.0 <= found.entropy <= math.log(len(row)) + 1e-9


def test_the_margin_is_there_even_where_only_the_best_is_kept() -> None:
    found = scored(0.0, 1.0, 0.0, 0.0, top_k=1)

    assert found.entries == ()
    assert found.margin == pytest.approx((math.e - 1) / (math.e + 3))


def test_top_k_beyond_the_classes_gives_all_of_them() -> None:
    assert names(scored(0.0, 3.0, 1.0, 2.0, top_k=100)) == ["b", "d", "c", "a"]


def test_a_single_class_is_certain() -> None:
    found = scored(-7.0, labels=("only",))

    assert (found.label, found.score, found.margin) == ("only", 1.0, 1.0)
    assert str(found.entropy) == "0.0"
    assert found.entries == ()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_none_and_hurts_no_other(broken: float) -> None:
    found = score(logits((0.0, 1.0), (broken, 1.0), (2.0, 0.0)), ("a", "b"), 1)

    assert [row and row.label for row in found] == ["b", None, "a"]


def test_a_row_does_not_depend_on_its_batch() -> None:
    rows = [(0.1, 0.2, 0.3, 0.4), (1e30, 5.0, 5.0, -3.0), (-80.0, 80.0, 0.0, 0.0)]

    together = score(logits(*rows), LABELS, 3)

    assert together == [score(logits(row), LABELS, 3)[0] for row in rows]


def test_an_empty_batch_gives_nothing() -> None:
    assert score(np.empty((0, 4), np.float32), LABELS, 2) == []
