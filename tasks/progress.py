"""Progress in images: a bar with the time left on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from tasks.plan import ShardDescriptor

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tasks.optimisation.distilling import Step

LINE_SECONDS = 5.0


class Bar(Protocol):
    """What the road tells about a run."""

    def plan(self, shards: Sequence[ShardDescriptor]) -> None:
        """Deduplication is through: this is the work."""
        ...

    def advance(self, images: int) -> None:
        """A commit has closed so many images."""
        ...


@contextmanager
def images(*, quiet: bool) -> Iterator[Bar]:
    """A bar where standard error is a terminal, lines where it is not, nothing where `quiet`."""
    if quiet:
        yield _Quiet()
    elif sys.stderr.isatty():
        with _progress() as shown:
            yield _Terminal(shown)
    else:
        yield lines(_say, LINE_SECONDS)


def lines(say: Callable[[str], None], every: float) -> Bar:
    """A line every so many seconds."""
    return _Lines(say, every)


class TrainingBar(Protocol):
    """What a training tells."""

    def advance(self, step: Step) -> None:
        """A batch has been learnt."""
        ...


@contextmanager
def training(*, quiet: bool) -> Iterator[TrainingBar]:
    """As `images`, for a training: the images of all epochs, the loss, and the time left."""
    if quiet:
        yield _QuietTraining()
    elif sys.stderr.isatty():
        with _progress("learning", "{task.fields[state]}") as shown:
            yield _TrainingTerminal(shown)
    else:
        yield _TrainingLines()


def _progress(doing: str = "predicting", more: str = "") -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    return Progress(*columns, *([TextColumn(more)] if more else []), console=Console(stderr=True))


class _Quiet:
    def plan(self, shards: Sequence[ShardDescriptor]) -> None:
        """Nothing to show."""

    def advance(self, images: int) -> None:
        """Nothing to show."""


class _Terminal:
    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._task = shown.add_task("predicting", total=None)

    def plan(self, shards: Sequence[ShardDescriptor]) -> None:
        self._shown.update(self._task, total=sum(shard.count for shard in shards))

    def advance(self, images: int) -> None:
        self._shown.advance(self._task, images)


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


class _Lines:
    def __init__(self, say: Callable[[str], None], every: float) -> None:
        self._say, self._every = say, every
        self._total = self._done = 0
        self._started = self._told = time.monotonic()

    def plan(self, shards: Sequence[ShardDescriptor]) -> None:
        self._total = sum(shard.count for shard in shards)
        self._started = self._told = time.monotonic()

    def advance(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if now - self._told < self._every and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        self._say(f"{self._done:,} of {self._total:,} images · {rate:,.0f} images/s · {left:,.0f} s left")


class _QuietTraining:
    def advance(self, step: Step) -> None:
        """Nothing to show."""


class _TrainingTerminal:
    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._task: TaskID | None = None

    def advance(self, step: Step) -> None:
        done, total = _all_epochs(step)
        if self._task is None:  # What an earlier process did is no part of the rate.
            self._task = self._shown.add_task("learning", total=total, completed=done - step.images, state="")
        state = f"epoch {step.epoch} of {step.epochs} · loss {step.loss:.4f}"
        self._shown.update(self._task, completed=done, state=state)


class _TrainingLines:
    def __init__(self) -> None:
        self._started = self._told = time.monotonic()
        self._first: int | None = None

    def advance(self, step: Step) -> None:
        done, total = _all_epochs(step)
        now = time.monotonic()
        if self._first is None:  # The rate is known from the second batch on.
            self._first, self._started = done, now
            return
        is_first = self._told < self._started
        if not is_first and now - self._told < LINE_SECONDS and done < total:
            return
        self._told = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = (total - done) / rate if rate else 0.0
        print(  # noqa: T201
            f"epoch {step.epoch} of {step.epochs} · {step.images:,} of {step.of:,} images · {rate:,.1f} images/s · "
            f"loss {step.loss:.4f} · {left:,.0f} s left",
            file=sys.stderr,
        )


def _all_epochs(step: Step) -> tuple[int, int]:
    """Images that were learnt, and those of all epochs."""
    return (step.epoch - 1) * step.of + step.images, step.epochs * step.of
