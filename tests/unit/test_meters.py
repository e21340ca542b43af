"""What a shard's stages say about themselves: counts that must agree, shares, percentiles, and words."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tasks.errors import InvariantViolation
from tasks.inference.meters import Meter, Meters
from tasks.processors import cores
from tasks.stage_times import PROCESSOR, STAGES, StageTimes, Times, held_back_by, size_class, summary, to_json, total

WORKERS = {"read": 16, "look_up": 1, "decode": 2, "forward": 2, "commit": 1}


def test_a_meter_counts_images_and_seconds() -> None:
    meter = Meter(2)
    with meter.work(3):
        time.sleep(0.02)
    meter.fail()
    meter.pass_on(4)

    times = meter.times()
    assert (meter.taken, meter.given, times.failures) == (7, 7, 1)
    assert 0.02 <= times.busy < 0.5
    assert sum(times.classes.values()) == 1


def test_work_that_raises_is_taken_and_not_given() -> None:
    meter = Meter(1)
    with pytest.raises(ValueError, match="no"), meter.work(2):
        raise ValueError("no")
    assert (meter.taken, meter.given) == (2, 0)


def flow(images: int) -> Meters:
    meters = Meters(WORKERS, 2)
    for stage in STAGES:
        meters[stage].pass_on(images)
    return meters


def test_counts_that_agree_pass() -> None:
    flow(10).check("shard 1/1", 10)


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_lost_on_the_way_into_a_stage_fails_the_shard(stage: str) -> None:
    meters = flow(10)
    meters[stage].taken -= 1
    meters[stage].given -= 1
    with pytest.raises(InvariantViolation, match=f"10 images left .* and 9 reached {stage}"):
        meters.check("shard 1/1", 10)


def test_twins_follow_with_the_commit() -> None:
    meters = flow(10)
    meters["look_up"].hold(3)
    for stage in ("decode", "forward"):
        meters[stage].taken = meters[stage].given = 7
    meters.check("shard 1/1", 10)
    meters["commit"].taken = 9
    with pytest.raises(InvariantViolation):
        meters.check("shard 1/1", 10)


def test_percentiles_are_at_most_a_fifth_above_the_truth() -> None:
    rng = random.Random(0)
    calls = sorted(rng.lognormvariate(-6, 1) for _ in range(10_000))
    times = StageTimes()
    for seconds in calls:
        number = size_class(seconds)
        times.classes[number] = times.classes.get(number, 0) + 1
    for part in (0.5, 0.9, 0.99):
        truth = calls[int(part * len(calls)) - 1]
        assert truth <= times.percentile(part) <= 1.2 * truth


def test_times_of_shards_add_up_through_json() -> None:
    one = {"decode": StageTimes(10, 1, 2.0, 4.0, 0.5, 0.25, {3: 7, 10: 3})}
    stored = json.loads(json.dumps(to_json(one)))
    both = total([stored, stored, {}])
    assert both == {"decode": StageTimes(20, 2, 4.0, 8.0, 1.0, 0.5, {3: 14, 10: 6})}
    assert summary(both)["decode"]["busy"] == 0.5


def times(processor: float, **shares: float) -> Times:
    """Ten seconds of two cores, and of one worker in each stage."""
    made = {stage: StageTimes(100, 0, 10 * share, 10.0) for stage, share in shares.items()}
    return {PROCESSOR: StageTimes(busy=20 * processor, capacity=20.0), **made}


def test_a_busy_processor_is_the_limit_and_its_stages_are_named() -> None:
    words = held_back_by(times(0.97, read=0.2, decode=0.6, forward=0.9, commit=0.1))
    assert words == "the processor was busy 97% of the time, most of it for forward (56%) and decode (38%)"


def test_a_busy_forward_pass_is_named() -> None:
    words = held_back_by(times(0.3, read=0.1, decode=0.2, forward=0.97, commit=0.1))
    assert words == "the forward pass was busy 97% of the time"


def test_slow_storage_is_named_with_what_it_starved() -> None:
    slow = times(0.1, read=0.99, decode=0.1, forward=0.3, commit=0.1)
    slow["forward"].input = 6.3
    slow["forward"].capacity = 40.0  # four streams, whose batches one thread fills
    assert held_back_by(slow) == (
        "storage reads were busy 99% of the time; the forward pass waited for its input 63% of it"
    )


def test_no_culprit_is_invented() -> None:
    assert held_back_by(times(0.1, decode=0.3, forward=0.2)) == "nothing for long: decoding was busy 30% of the time"
    assert held_back_by({}) is None


def test_a_containers_quota_counts(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert cores(quota) == 1
    quota.write_text("150000 100000\n")
    assert cores(quota) == min(2, cores(tmp_path / "none"))
    quota.write_text("max 100000\n")
    assert cores(quota) == cores(tmp_path / "none") >= 1
