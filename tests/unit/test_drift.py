"""PSI against values computed by hand, and when a shift is called one."""

from __future__ import annotations

import math
import random
from datetime import date
from pathlib import Path

import pytest

from tasks import drift
from tasks.drift import Shift, chance_of, drift_of, most_moved, population_stability
from tasks.errors import ConfigurationError
from tasks.pipelines import find_pipeline


def test_the_same_shares_have_not_moved() -> None:
    assert population_stability([10, 20, 70], [100, 200, 700]) == pytest.approx(0, abs=1e-12)


def test_two_bins_by_hand() -> None:
    # (0.4 - 0.5) ln(0.4 / 0.5) + (0.6 - 0.5) ln(0.6 / 0.5) = 0.022314 + 0.018232
    assert population_stability([40, 60], [50, 50]) == pytest.approx(0.0405465, abs=1e-6)


def test_three_bins_by_hand() -> None:
    # 0.3 ln 2.5 - 0.1 ln 0.75 - 0.2 ln 0.5 = 0.274887 + 0.028768 + 0.138629: from 0.2, 0.4, 0.4 to 0.5, 0.3, 0.2
    assert population_stability([50, 30, 20], [20, 40, 40]) == pytest.approx(0.442285, abs=1e-6)


def test_an_empty_bin_counts_as_one_in_ten_thousand() -> None:
    # now 1 and 0.0001, then 0.5 and 0.5: 0.5 ln 2 + 0.4999 ln 5000 = 0.346574 + 4.257745
    assert population_stability([100, 0], [50, 50]) == pytest.approx(0.346574 + 0.4999 * math.log(5000), abs=1e-6)
    assert population_stability([0, 100, 0], [0, 100, 0]) == pytest.approx(0)


@pytest.mark.parametrize(("now", "then"), [([0, 0], [1, 1]), ([1, 1], [0, 0])])
def test_nothing_has_no_shares(now: list[int], then: list[int]) -> None:
    with pytest.raises(ValueError, match="no images"):
        population_stability(now, then)


def test_chance_is_the_quantile_of_chi_squared() -> None:
    # 99 % of chi-squared numbers are below 6.635, 21.666 and 36.191 with 1, 9 and 19 degrees of freedom.
    for bins, quantile in ((2, 6.635), (10, 21.666), (20, 36.191)):
        assert chance_of(100, 100, bins) == pytest.approx(quantile / 50, rel=0.015)
    assert chance_of(100, 100, 1) == 0


def test_chance_is_what_samples_without_a_shift_stay_below() -> None:
    draw = random.Random(7)
    beyond = 0
    for _ in range(400):
        now, then = ([0] * 10 for _ in range(2))
        for counts, images in ((now, 200), (then, 2000)):
            for _ in range(images):
                counts[draw.randrange(10)] += 1
        beyond += population_stability(now, then) > chance_of(200, 2000, 10)
    assert beyond <= 12, "one in a hundred, and some of luck"


def test_a_large_number_that_may_be_chance_is_no_shift() -> None:
    assert not Shift(psi=0.3, chance=0.4).exceeds(0.25)
    assert Shift(psi=0.5, chance=0.4).exceeds(0.25)
    assert not Shift(psi=0.2, chance=0.01).exceeds(0.25)


def test_too_few_images_on_either_side_are_not_judged() -> None:
    assert drift_of({0: 49}, [49], {0: 1000}, [1000]) is None
    assert drift_of({0: 1000}, [1000], {0: 49}, [49]) is None
    assert drift_of({}, [0], {}, [0]) is None
    judged = drift_of({0: 50}, [50], {0: 50}, [50])
    assert judged is not None
    assert (judged.psi, judged.verdict) == (0, "stable")


def test_the_larger_shift_counts_and_has_a_name() -> None:
    found = drift_of({0: 500, 1: 300, 2: 200}, [1000, 0], {0: 200, 1: 400, 2: 400}, [1000, 0])
    assert found is not None
    assert found.psi == found.labels.psi == pytest.approx(0.442285, abs=1e-6)
    assert found.verdict == "significant"
    mild = drift_of({0: 4000, 1: 6000}, [1], {0: 5500, 1: 4500}, [1])
    assert mild is None, "the scores are what is counted"
    mild = drift_of({0: 4000, 1: 6000}, [10_000], {0: 5700, 1: 4300}, [10_000])
    assert mild is not None
    assert mild.verdict == "moderate"


def test_labels_that_moved_most_come_first() -> None:
    moved = most_moved({0: 10, 1: 10, 3: 80}, {0: 10, 1: 50, 2: 40})
    assert [one.label_index for one in moved] == [3, 1, 2]
    assert moved[0].by == pytest.approx(0.8)
    assert (moved[2].then, moved[2].now) == (0.4, 0)
    assert most_moved({0: 5}, {0: 7}) == []
    assert most_moved({}, {0: 7}) == []


TABLE = '[photos]\nimages = "images"\nmodel = "torchvision:resnet18"\n'


def table(tmp_path: Path, lines: str) -> Path:
    file = tmp_path / "pipelines.toml"
    file.write_text(TABLE + lines)
    return file


@pytest.mark.parametrize("baseline", ['["2026-10-01", "2026-10-31"]', "[2026-10-01, 2026-10-31]"])
def test_a_baseline_is_two_days_of_toml_or_text(tmp_path: Path, baseline: str) -> None:
    found = find_pipeline(table(tmp_path, f"baseline = {baseline}\ndrift_limit = 0.25"), "photos")
    assert found.baseline == (date(2026, 10, 1), date(2026, 10, 31))
    assert (found.drift_limit, found.drift_action) == (0.25, "fail")
    assert type(found)(**found.model_dump()) == found


@pytest.mark.parametrize(
    ("lines", "key", "told"),
    [
        ("drift_limit = 0.25", "drift_limit", "needs days to compare with"),
        ('baseline = ["2026-10-31", "2026-10-01"]', "baseline", "comes after the last one"),
        ('baseline = ["2026-10-01"]', "baseline", "expected the first day and the last one"),
        ('baseline = "2026-10-01"', "baseline", "expected the first day and the last one"),
        ('baseline = ["yesterday", "today"]', "baseline", "yesterday is no day"),
        ("baseline = [2026-10-01T12:00:00, 2026-10-02T12:00:00]", "baseline", "is no day"),
        ("baseline = [1, 2]", "baseline", "1 is no day"),
        ('baseline = ["2026-10-01", "2026-10-02"]\ndrift_limit = 0', "drift_limit", "greater than 0"),
        ('baseline = ["2026-10-01", "2026-10-02"]\ndrift_limit = inf', "drift_limit", "finite"),
        ('drift_action = "shout"', "drift_action", "'fail' or 'notify'"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_with_file_table_and_key(
    tmp_path: Path, lines: str, key: str, told: str
) -> None:
    file = table(tmp_path, lines)
    with pytest.raises(ConfigurationError) as error:
        find_pipeline(file, "photos")
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{file}: [photos] {key} = ")
    assert told in line


def test_the_customary_limits() -> None:
    assert (drift.MODERATE, drift.SIGNIFICANT, drift.EPSILON) == (0.1, 0.25, 0.0001)
