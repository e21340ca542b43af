"""A filled bucket on the fake S3, a pipeline over it, and what an undisturbed run leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.fake_s3.control import FakeS3
from tests.faults.oracle import settle
from tests.faults.record import record
from tests.pictures import picture
from tests.runner import Runner

IMAGES = 24

GOOD = 40
"""How many images the fixture `runner` has, all of them good."""


def image_of(number: int) -> tuple[str, bytes]:
    """A key and its picture; every fourth is a JPEG, which decodes whatever bit of it is wrong."""
    form = "PNG" if number % 4 else "JPEG"
    return f"{number:05d}.{form.lower()}", picture(number, (64, 48), form)


def survive(
    runner: Runner, calm: dict[str, Any], kind: str, name: str, *, injected: int, answer: str
) -> dict[str, Any]:
    """One clean run, and all that must be true after it; the fault is written down. The counts of that run."""
    settled = settle(runner, calm)
    record(kind, name, injected=injected, answer=answer, lost=settled.lost, doubled=settled.doubled)
    return settled.counts


@dataclass
class Scene:
    """A filled bucket, a pipeline over it, and the rows of a run that nobody disturbed."""

    fake: FakeS3
    bucket: str
    runner: Runner
    calm: dict[str, Any]

    def settle(self, name: str, injected: int, answer: str) -> None:
        """Without faults from here on: one clean run, and all that must be true. The fault is written down."""
        self.fake.reset()
        survive(self.runner, self.calm, "storage", name, injected=injected, answer=answer)

    def failures(self) -> dict[str, str]:
        """{key: reason} of the quarantine."""
        return {row["key"]: row["reason"] for row in self.runner.rows("SELECT key, reason FROM v_failure")}


Make = Callable[..., Scene]


def reasons(runner: Runner) -> dict[str, tuple[str, bool]]:
    return {row["key"]: (row["reason"], bool(row["permanent"])) for row in runner.rows("SELECT * FROM v_failure")}
