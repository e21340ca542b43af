"""What was asked, what was found, and whether that is enough."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

_ENOUGH: dict[str, Callable[[float, float], bool]] = {"at least": operator.ge, "at most": operator.le}

MISSED, MUST, AIM, TOLD = "MISSED", "must", "aim", "no bar"


@dataclass(frozen=True)
class Target:
    """A bar: `must` is needed, `aim` is wished for; either may be absent."""

    must: float | None = None
    aim: float | None = None
    direction: str = "at least"
    unit: str = "x"

    def judge(self, found: float) -> str:
        """The highest bar that was reached. What has no bar is only told."""
        enough = _ENOUGH[self.direction]
        if self.must is not None and not enough(found, self.must):
            return MISSED
        if self.aim is not None and enough(found, self.aim):
            return AIM
        return MUST if self.must is not None else (TOLD if self.aim is None else "below aim")

    def show(self, value: float | None) -> str:
        """A value in this target's unit."""
        if value is None:
            return ""
        return f"{value:.2f}x" if self.unit == "x" else f"{value:,.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    what: str
    found: float
    target: Target
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """See Target.judge."""
        return self.target.judge(self.found)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "verdict": self.verdict}
