"""A new bundle from an old one: make it, compare them, keep it only where it is good enough, and report either way.

    original -> make -> compare -> gate -> keep, or remove
                                     `-> report

Whatever makes the bundle (quantisation, pruning, distillation) is a function that fills a folder. What it has to say
about its work goes into the report.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.spec import Option
from tasks.optimisation import report
from tasks.optimisation.choosing import Sample
from tasks.optimisation.comparing import compare
from tasks.optimisation.figures import Gate, figures_of
from tasks.optimisation.measuring import ROUNDS, measure_in_turn
from tasks.optimisation.truth import Truth
from tasks.settings import Settings

Facts = Mapping[str, Option]
"""What a maker says about its work, such as {"agreement before recovery": 0.41}: lines of the report."""

Make = Callable[[Path], Facts]
"""Fills a folder that is there and empty with a whole bundle (bundle.write_bundle)."""


@dataclass(frozen=True)
class Order:
    """What is asked for: where the bundle and the report are to lie, and how it is judged.

    `advice` says what to try where the gate is missed.
    """

    folder: Path
    report: Path
    judged: Sample
    gate: Gate
    truth: Truth = field(default_factory=dict)
    advice: str = "a looser gate"
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Produced:
    """What became of an order: the bundle's folder, or what it misses. `content` is what report.json holds."""

    folder: Path | None
    misses: tuple[str, ...]
    report: Path
    content: Mapping[str, Any]


def refuse_existing(folder: Path) -> None:
    """Raises ConfigurationError where a bundle would be written over something."""
    if folder.exists():
        raise ConfigurationError(
            f"{folder} exists already, and a bundle is never changed. Give another --name or --to, or remove the folder."
        )


def produce(original: Bundle, make: Make, order: Order, settings: Settings) -> Produced:
    """Make a bundle and judge it. It is at `order.folder` only where it passed; the report is there in any case.

    Raises ConfigurationError where that folder exists, and whatever `make` raises; nothing is left behind then.
    """
    refuse_existing(order.folder)
    order.folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=order.folder.parent))
    try:
        facts = make(scratch)
        content = _judge(original, read_bundle(scratch), facts, order, settings)
        misses = tuple(content["gate"]["misses"])
        report.write(content, order.report)
        if not misses:
            scratch.chmod(0o755)  # mkdtemp gives it to this user alone; workers may run as others
            os.rename(scratch, order.folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Produced(None if misses else order.folder, misses, order.report, content)


def _judge(original: Bundle, new: Bundle, facts: Facts, order: Order, settings: Settings) -> dict[str, Any]:
    """Everything that the report says."""
    comparison = compare([original, new], order.judged, settings)
    figures = figures_of(comparison, original.labels, order.truth)
    misses = order.gate.misses(figures)
    speeds = measure_in_turn([original, new], settings, order.rounds)
    return report.content_of(
        report.Story(
            original=original,
            new=new,
            folder=None if misses else order.folder,
            judged=order.judged,
            left_out=comparison.left_out,
            figures=figures,
            gate=order.gate,
            misses=misses,
            advice=order.advice,
            speeds=speeds,
            facts=facts,
        )
    )
