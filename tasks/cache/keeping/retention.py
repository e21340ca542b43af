"""What is to go: the rules that an operator gives, and the conditions over rows that they become."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, CompoundSelect, Connection, Select, and_, exists, false, or_, select

from tasks.cache.runs import ABANDONED, RUNNING, now
from tasks.cache.schema import image, model, pipeline, prediction, run
from tasks.errors import ConfigurationError
from tasks.settings import Settings

# As much of a model_id as tables of the command line show.
SHOWN_DIGITS = 12

LONGEST_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Retention:
    """What an operator wants to be gone; None and False ask for nothing.

    Images whose objects vanished so many days ago; predictions older than so many days of models that are no pipeline's
    current one; all predictions of a model, by its model_id or as NAME@VERSION; predictions whose digest no image has.
    """

    vanished_days: int | None = None
    older_than_days: int | None = None
    model: str | None = None
    orphans: bool = False

    def asks_for_something(self) -> bool:
        """Whether any rule is given."""
        return self != Retention()


def retention_of(settings: Settings) -> Retention:
    """What an installation does not keep, by its environment."""
    return Retention(settings.keep_vanished_days, settings.keep_predictions_days, None, settings.prune_orphans)


@dataclass(frozen=True, slots=True)
class Going:
    """A Retention at a moment and in a cache: what it counts is what it removes, however long that takes.

    `unused` are the models that nobody used then.
    """

    vanished_before: datetime | None
    predicted_before: datetime | None
    model_no: int | None
    orphans: bool
    unused: tuple[int, ...]


def going_of(connection: Connection, asked: Retention) -> Going:
    """The rules as of now. Raises ConfigurationError where the model is not known, or in use."""
    model_no = None
    if asked.model is not None:
        model_no = find_model(connection, asked.model)
        check_unused(connection, model_no)
    moments = _moment(asked.vanished_days), _moment(asked.older_than_days)
    return Going(*moments, model_no, asked.orphans, unused_models(connection))


def _moment(days: int | None) -> datetime | None:
    return None if days is None else now() - timedelta(days=min(days, LONGEST_DAYS))


def find_model(connection: Connection, named: str) -> int:
    """The number of a model by its model_id, the beginning of one, or NAME@VERSION. Raises ConfigurationError."""
    known = connection.execute(select(model).order_by(model.c.model_no)).all()
    name, _, version = named.rpartition("@")
    begins = len(named) >= SHOWN_DIGITS
    found = [row for row in known if row.model_id == named or (row.name, row.version) == (name, version)]
    found = found or [row for row in known if begins and row.model_id.startswith(named)]
    if len(found) == 1:
        return int(found[0].model_no)
    if found:
        ids = ", ".join(row.model_id[:SHOWN_DIGITS] for row in found)
        raise ConfigurationError(f"{named!r} is the name of {len(found)} models: {ids}. Give one of these instead.")
    names = ", ".join(f"{row.name}@{row.version} ({row.model_id[:SHOWN_DIGITS]})" for row in known)
    raise ConfigurationError(f"The cache knows no model {named!r}. It knows: {names or 'none'}. Name one of them.")


def check_unused(connection: Connection, model_no: int) -> None:
    """Raises ConfigurationError where the model is a pipeline's current one, or a run under way has it."""
    current = select(pipeline.c.name).where(pipeline.c.model_no == model_no).order_by(pipeline.c.name)
    names = list(connection.execute(current).scalars())
    if names:
        raise ConfigurationError(
            f"The model is the current one of {', '.join(names)}: v_current_prediction would be empty. Run the pipeline with "
            "another model first, by schedule or over everything, and give the command again."
        )
    running = connection.execute(
        select(run.c.dag_id, run.c.run_id).where(*_is_running(), run.c.model_no == model_no)
    ).first()
    if running is not None:
        raise ConfigurationError(
            f"The run {running.dag_id} {running.run_id} is under way with this model. Give the command again when it is over."
        )


def _used() -> CompoundSelect[int]:
    running = select(run.c.model_no).where(*_is_running(), run.c.model_no.is_not(None))
    return select(pipeline.c.model_no).union(running)


def unused_models(connection: Connection) -> tuple[int, ...]:
    """The numbers of the models that no pipeline has, and no run that is under way."""
    query = select(model.c.model_no).where(model.c.model_no.not_in(_used())).order_by(model.c.model_no)
    return tuple(connection.execute(query).scalars())


def _is_running() -> tuple[ColumnElement[bool], ...]:
    """One that was killed and never closed is under way to nobody's knowledge: after a time it does not count."""
    return run.c.state == RUNNING, run.c.started_at > now() - ABANDONED


def vanished(going: Going) -> ColumnElement[bool]:
    """Of an image: its object has been gone for long enough."""
    return false() if going.vanished_before is None else image.c.deleted_at < going.vanished_before


def dropped(going: Going) -> ColumnElement[bool]:
    """Of a prediction: its model goes as a whole."""
    return false() if going.model_no is None else prediction.c.model_no == going.model_no


def old(going: Going) -> ColumnElement[bool]:
    """Of a prediction: it is old, and nobody used its model, then or by now."""
    if going.predicted_before is None:
        return false()
    whose = and_(prediction.c.model_no.in_(going.unused), prediction.c.model_no.not_in(_used()))
    return and_(whose, prediction.c.predicted_at < going.predicted_before)


def orphaned(going: Going) -> ColumnElement[bool]:
    """Of a prediction: no image has its digest, or none that stays."""
    if not going.orphans:
        return false()
    stays = image.c.digest == prediction.c.digest
    if going.vanished_before is not None:
        stays = and_(stays, or_(image.c.deleted_at.is_(None), image.c.deleted_at >= going.vanished_before))
    return ~exists().where(stays)


def model_numbers(connection: Connection) -> list[int]:
    """The numbers of all models."""
    query: Select[int] = select(model.c.model_no).order_by(model.c.model_no)
    return list(connection.execute(query).scalars())
