"""How the stages of a shard spent their time: what is added up over shards, stored, and put into words.

    busy / capacity            the share of a stage's workers that were at work
    input / output seconds     how long the stage had nothing to do, or nobody to hand its work to
    percentiles                of the seconds of one call, from counts by size class, so that shards can be added up

`processor` stands among the stages: CPU seconds of the process over cores times seconds. A cascade has a stage for each of
its forward passes: `forward`, `forward_2` and so on, and `decode_2` where the second model wants other pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

PROCESSOR = "processor"
STAGES = ("read", "look_up", "decode", "forward", "commit")

# Four classes to each doubling: a percentile is at most 19 % above the call that it stands for.
CLASSES_PER_DOUBLING = 4

# From this share on, there is no doubt about what a run waited for.
SATURATED = 0.85

# A stage of a cascade's later models: `forward_2`.
_LATER = re.compile(r"(decode|forward)_(\d+)")

_IN_WORDS = {
    "read": "storage reads were",
    "look_up": "the look-up in the cache was",
    "decode": "decoding was",
    "forward": "the forward pass was",
    "commit": "commits to the database were",
}


@dataclass(slots=True)
class StageTimes:
    """One stage. Seconds are added up over its workers and over shards; `classes` is {size class: calls}."""

    items: int = 0
    failures: int = 0
    busy: float = 0.0
    capacity: float = 0.0
    input: float = 0.0
    output: float = 0.0
    classes: dict[int, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Which part of the stage's capacity was used, 0 to 1."""
        return min(1.0, self.busy / self.capacity) if self.capacity > 0 else 0.0

    def percentile(self, part: float) -> float:
        """Seconds within which `part` (0 to 1) of the calls ended; 0 where there was none."""
        left = part * sum(self.classes.values())
        for number in sorted(self.classes):
            left -= self.classes[number]
            if left <= 0:
                return upper_bound(number)
        return 0.0

    def add(self, other: Self) -> None:
        """Add another shard's times, or another attempt's."""
        for name in ("items", "failures", "busy", "capacity", "input", "output"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for number, calls in other.classes.items():
            self.classes[number] = self.classes.get(number, 0) + calls

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what to_dict gave; JSON has turned the classes' numbers into text."""
        classes = {int(number): calls for number, calls in values.get("classes", {}).items()}
        return cls(**{**values, "classes": classes})


Times = dict[str, StageTimes]


def base(stage: str) -> str:
    """What a stage is one of: `forward` for `forward_2`."""
    later = _LATER.fullmatch(stage)
    return later[1] if later else stage


def number_of(stage: str) -> int:
    """Which model of a cascade a stage belongs to: 2 for `forward_2`, and 1 for those without a number."""
    later = _LATER.fullmatch(stage)
    return int(later[2]) if later else 1


def numbered(stage: str, number: int) -> str:
    """The inverse: `forward` and 2 give `forward_2`, and with 1 it stays `forward`."""
    return stage if number == 1 else f"{stage}_{number}"


def ordered(stages: Iterable[str]) -> list[str]:
    """Those of the names that are stages, in the order in which images go through them."""
    found = [stage for stage in stages if base(stage) in STAGES]
    return sorted(found, key=lambda stage: (stage == "commit", number_of(stage), STAGES.index(base(stage))))


def size_class(seconds: float) -> int:
    """The size class of a call: its seconds in microseconds, on a scale of powers of two."""
    return max(0, math.ceil(CLASSES_PER_DOUBLING * math.log2(max(seconds, 1e-6) * 1e6)))


def upper_bound(number: int) -> float:
    """The longest call of a class, in seconds."""
    return float(2 ** (number / CLASSES_PER_DOUBLING) / 1e6)


def total(parts: Iterable[Mapping[str, Any]]) -> Times:
    """Stored times of several shards or attempts as one."""
    times: Times = {}
    for part in parts:
        for stage, values in part.items():
            times.setdefault(stage, StageTimes()).add(StageTimes.from_dict(values))
    return times


def to_json(times: Times) -> dict[str, Any]:
    """{stage: plain values}, to be stored."""
    return {stage: one.to_dict() for stage, one in times.items()}


def summary(times: Times) -> dict[str, dict[str, Any]]:
    """What people and dashboards read of each stage: counts, shares of 0 to 1, and percentiles in milliseconds."""
    return {
        stage: {
            "items": times[stage].items,
            "failures": times[stage].failures,
            "busy": round(times[stage].share, 3),
            "input_wait_seconds": round(times[stage].input, 3),
            "output_wait_seconds": round(times[stage].output, 3),
            **{f"p{part}_ms": round(times[stage].percentile(part / 100) * 1000, 2) for part in (50, 90, 99)},
        }
        for stage in ordered(times)
    }


def held_back_by(times: Times) -> str | None:
    """In words, what held the work back; None where nothing was worked on.

    A processor that is always busy is the limit, whatever stage waits for whom: then the stages are named that it
    worked for. Otherwise it is the stage whose workers rested least.
    """
    stages = {stage: times[stage] for stage in ordered(times) if times[stage].items}
    if not stages:
        return None
    processor = times.get(PROCESSOR, StageTimes()).share
    if processor >= SATURATED:
        return f"the processor was busy {processor:.0%} of the time, {_most_of_it(stages)}"
    stage, busiest = max(stages.items(), key=lambda pair: pair[1].share)
    words = f"{_in_words(stage)} busy {busiest.share:.0%} of the time"
    if stage == "read" and "forward" in stages:
        # One thread fills the batches of all streams, and one commits: the capacity of commits is the time that passed.
        passed = times.get("commit", StageTimes()).capacity
        waited = min(1.0, stages["forward"].input / passed) if passed else 0.0
        return f"{words}; the forward pass waited for its input {waited:.0%} of it"
    return words if busiest.share >= SATURATED else f"nothing for long: {words}"


def _in_words(stage: str) -> str:
    if number_of(stage) == 1:
        return _IN_WORDS[stage]
    return f"{_IN_WORDS[base(stage)].removesuffix(' was')} of model {number_of(stage)} was"


def _most_of_it(stages: Times) -> str:
    """The two stages on which most seconds were spent, of those that compute."""
    computing = {stage: one.busy for stage, one in stages.items() if base(stage) != "read"}
    whole = sum(computing.values()) or 1.0
    first = sorted(computing.items(), key=lambda pair: -pair[1])[:2]
    return "most of it for " + " and ".join(f"{stage} ({busy / whole:.0%})" for stage, busy in first)
