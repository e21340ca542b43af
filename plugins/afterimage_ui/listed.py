"""What Export and the API give of a pipeline, by name."""

from __future__ import annotations

from afterimage_ui import caches
from afterimage_ui.asked import Asked
from afterimage_ui.subjects import model_of, scope_of
from tasks.cache.pages import listings
from tasks.cache.pages.gallery import Question
from tasks.cache.pages.listings import Listing

NAMES = ("predictions", "failures", "runs", "reviews")


class NotAsked(Exception):
    """An address asks for what there is not; the text names the parameter."""


def listing_of(pipeline: str, name: str, asked: Asked) -> Listing:
    """The filter is for predictions alone. Raises NotAsked where some of it cannot be used, PageProblem before the first run."""
    if name not in NAMES:
        raise NotAsked(f"There is no {name!r} to export. Expected one of: {', '.join(NAMES)}.")
    if name == "runs":
        return listings.runs(pipeline)
    if name == "reviews":
        return listings.reviews(pipeline)
    scope = scope_of(pipeline)
    if name == "failures":
        return listings.failures(scope)
    model, problems = model_of(scope, asked.values.get("model"))
    if asked.problems or problems:
        raise NotAsked(" ".join([*asked.problems, *problems]).replace(", which was left out", ""))
    sqlite = caches.export_cache().dialect.name == "sqlite"
    return listings.predictions(Question(scope, model, asked.filter), sqlite)
