"""What a page is asked for in its address; what makes no sense is told as a problem of the page."""

from __future__ import annotations

import math

from afterimage_ui.shell import PageProblem
from tasks.cache.pages.walking import Position


def number_in(name: str, text: str) -> float | None:
    """A number; None where the field is empty. Raises PageProblem."""
    try:
        number = float(text) if text.strip() else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise PageProblem(f"{name} = {text[:80]!r} is no number. Write one such as 0.25, or leave it empty.", 422)
    return number


def position_in(text: str) -> Position | None:
    """Where a walk goes on; None at its beginning. Raises PageProblem."""
    try:
        position = Position.parse(text) if text else None
    except ValueError:
        position = Position(math.nan, b"")
    if position is not None and not math.isfinite(position.margin):
        raise PageProblem(f"after = {text[:80]!r} is no place in the list. Begin again without it.", 422)
    return position
