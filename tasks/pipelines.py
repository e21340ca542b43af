"""pipelines.toml says what to predict: one table for each pipeline.

A wrong value is answered with a ConfigurationError that names the file, the table, the key, the value found and what is
allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from tasks.errors import ConfigurationError
from tasks.location import parse_location
from tasks.notifications import Notify
from tasks.uris import absolute_models, absolute_uri, without_secrets

# A queue's URL, without a user or a query.
_QUEUE = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9_.-]+)+")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")

# Keys under which somebody may have put a secret, although it belongs into the environment.
_SECRETIVE = re.compile(r"secret|password|token|credential|access_key|database", re.IGNORECASE)

# What may be shown of a table of `notify`; its arguments are anybody's guess.
_HARMLESS = re.compile(r"notify\.\d+\.(notifier|on(\.\d+)?)")

RASTER_SUFFIXES = ("*.jpg", "*.jpeg", "*.png", "*.webp", "*.gif", "*.bmp", "*.tif", "*.tiff")


class Pipeline(BaseModel):
    """One table of pipelines.toml. README.md, "Configuration", says why each default is what it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    images: Annotated[str, Field(min_length=1)]
    inventory: Annotated[str, Field(min_length=1)] | None = None
    reconcile_days: Annotated[float, Field(gt=0, le=36_500)] = 7.0
    events: str | None = None
    thumbnails: Annotated[str, Field(min_length=1)] | None = None
    model: str | tuple[str, ...]
    cascade_margin: float | tuple[float, ...] | None = Field(None, validate_default=True)
    schedule: str | None = None
    include: tuple[str, ...] = RASTER_SUFFIXES
    exclude: tuple[str, ...] = ()
    shard_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    max_shards: Annotated[int, Field(ge=1, le=1024)] = 64
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    engine: Literal["airflow", "ray"] = "airflow"
    list_workers: Annotated[int, Field(ge=1, le=256)] = 16
    list_tasks: Annotated[int, Field(ge=1, le=256)] = 1
    commit_images: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    lookback_days: Annotated[int, Field(ge=0, le=3650)] = 3
    keep_runs_days: Annotated[float, Field(gt=0, le=36_500)] = 7.0
    max_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    baseline: tuple[date, date] | None = None
    drift_limit: Annotated[float, Field(gt=0)] | None = None
    drift_action: Literal["fail", "notify"] = "fail"
    notify: tuple[Notify, ...] = ()

    @field_validator("images")
    @classmethod
    def _names_a_store(cls, value: str) -> str:
        _check_location(value)
        return value

    @field_validator("inventory")
    @classmethod
    def _is_of_a_bucket(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _check_location(value)
            location = parse_location(value)
            if location.scheme != "s3" or location.template is not None or not location.prefix.strip("/"):
                raise ValueError(
                    "expected s3://BUCKET/PREFIX/SOURCE-BUCKET/CONFIG-ID/, the folder above those with a date"
                )
            _check_in_s3(info, "only a bucket has an inventory")
        return value

    @field_validator("events")
    @classmethod
    def _is_a_queue(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not _QUEUE.fullmatch(value):
            raise ValueError("expected the URL of a queue: https://sqs.REGION.amazonaws.com/ACCOUNT/NAME")
        _check_in_s3(info, "only a bucket announces its objects")
        if "images" in info.data and parse_location(info.data["images"]).root.startswith("arn:"):
            raise ValueError("events name the bucket, and `images` an access point: write s3://BUCKET/PREFIX there")
        return value

    @field_validator("thumbnails")
    @classmethod
    def _lie_apart(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _check_location(value)
            if parse_location(value).template is not None:
                raise ValueError(
                    "expected a folder or s3://BUCKET/PREFIX without a date: one place holds those of all days"
                )
            if "images" in info.data:
                _check_apart(value, info.data["images"])
        return value

    @field_validator("model", mode="plain")
    @classmethod
    def _names_models(cls, value: object) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return _model_uri(value)
        if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(uri, str) for uri in value):
            raise ValueError('expected a model, or for a cascade a list of two or more: ["small", "large"]')
        return tuple(_model_uri(uri) for uri in value)

    @field_validator("cascade_margin", mode="plain")
    @classmethod
    def _suits_the_models(cls, value: object, info: ValidationInfo) -> float | tuple[float, ...] | None:
        model = info.data.get("model")
        if model is None:
            return None  # That is the mistake, and it is told of.
        if isinstance(model, str):
            if value is not None:
                raise ValueError(
                    'it belongs to a cascade, and `model` is a single one; make it a list: ["small", "large"]'
                )
            return None
        if value is None:
            raise ValueError("a cascade needs the margin below which an image goes on, such as cascade_margin = 0.4")
        return _margins(value, len(model) - 1)

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        if value is None or value.strip().lower() == "none":
            return None
        if (value.startswith("@") or len(value.split()) == 5) and _ever_fires(value):
            return value
        raise ValueError('expected a cron expression such as "0 2 * * *" or "@daily", or "none"')

    @field_validator("baseline", mode="plain")
    @classmethod
    def _is_a_span_of_days(cls, value: object) -> tuple[date, date] | None:
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError('expected the first day and the last one: ["2026-10-01", "2026-10-31"]')
        first, last = (_day(one) for one in value)
        if first > last:
            raise ValueError("the first day comes after the last one")
        return first, last

    @field_validator("drift_limit")
    @classmethod
    def _has_a_baseline(cls, value: float | None, info: ValidationInfo) -> float | None:
        # A baseline that is wrong is not there either, and that is told of.
        if value is not None and info.data.get("baseline", ()) is None:
            raise ValueError('it needs days to compare with: add baseline = ["2026-10-01", "2026-10-31"]')
        return value

    @property
    def models(self) -> tuple[str, ...]:
        """The model's URI, or those of a cascade in their order."""
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def margins(self) -> tuple[float, ...]:
        """Below which margin an image goes on from each model of a cascade but the last; none for a single model."""
        margin = self.cascade_margin
        if margin is None:
            return ()
        return margin if isinstance(margin, tuple) else (margin,) * (len(self.models) - 1)


def _check_location(value: str) -> None:
    try:
        parse_location(value)
    except ConfigurationError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _check_in_s3(info: ValidationInfo, why: str) -> None:
    """Raises ValueError where the images lie in a folder; images that are wrong are told of elsewhere."""
    images = info.data.get("images")
    if images is not None and parse_location(images).scheme != "s3":
        raise ValueError(f"{why}, and `images` is {images!r}: expected images in s3://BUCKET/PREFIX")


def _check_apart(thumbnails: str, images: str) -> None:
    """Raises ValueError where one lies at, under or above the other: thumbnails would be listed as images."""
    theirs, ours = _place(images), _place(thumbnails).rstrip("/") + "/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise ValueError(
            "it lies at, under or above the images, so that thumbnails would be listed as images; expected a place apart"
        )


def _place(uri: str) -> str:
    """Store, bucket or folder, and what every key begins with; two places overlap where one text begins with the other."""
    location = parse_location(uri)
    prefix = location.prefix if location.template is None else location.template.stem
    return f"{location.scheme}:{location.root.rstrip('/')}/{prefix}"


def _model_uri(value: str) -> str:
    scheme = _SCHEME.match(value)
    if not value:
        raise ValueError("expected torchvision:NAME, s3://BUCKET/PREFIX or a folder, and it is empty")
    if scheme is not None and scheme[1] not in ("torchvision", "timm", "bundle", "s3", "file"):
        raise ValueError(
            f"{scheme[1]}: is no scheme of a model; expected torchvision:NAME, timm:NAME, bundle:NAME, s3://BUCKET/PREFIX or "
            "a folder (./ before a folder whose name holds a colon)"
        )
    if scheme is not None and scheme[1] == "s3":
        _check_location(value)
    try:
        absolute_uri(value, Path("/"))
    except ConfigurationError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


def _margins(value: object, count: int) -> float | tuple[float, ...]:
    """A margin for all models but the last, or one for each of these `count`."""
    given: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not all(type(margin) in (int, float) and 0 < margin <= 1 for margin in given):
        raise ValueError("expected a number above 0 and at most 1, or a list of them")
    if not isinstance(value, list | tuple):
        return float(given[0])
    if len(given) != count:
        raise ValueError(f"expected one number, or a list of {count}: one for each model but the last")
    return tuple(float(margin) for margin in given)


def _day(value: object) -> date:
    """A day as TOML has it, or as text."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"{value!s} is no day; expected one such as 2026-10-01, in UTC") from None


def _ever_fires(cron: str) -> bool:
    """Whether a cron expression is one, and names a moment: `0 2 30 2 *` is valid, and no February has 30 days."""
    from croniter import CroniterBadDateError, croniter

    if not croniter.is_valid(cron):
        return False
    try:
        croniter(cron).get_next()
    except CroniterBadDateError:
        return False
    return True


def load_pipelines(path: Path) -> dict[str, Pipeline]:
    """Read pipelines.toml into {name: Pipeline}, in the order of the file.

    Relative local paths in `images`, `thumbnails` and `model` are taken from the file's folder. Raises ConfigurationError, which
    names file, table, key, the value found and what is allowed, for each table that is wrong.
    """
    pipelines, problems = read_pipelines(path)
    if problems:
        raise ConfigurationError("\n".join(problems.values()))
    return pipelines


def read_pipelines(path: Path) -> tuple[dict[str, Pipeline], dict[str, str]]:
    """The tables that are right, and {name: what is wrong} for the others: one of them must not stop the rest.

    Raises ConfigurationError where the file as a whole cannot be read.
    """
    pipelines: dict[str, Pipeline] = {}
    problems: dict[str, str] = {}
    for name, table in _tables(path).items():
        try:
            pipelines[name] = _pipeline(path, name, table)
        except ConfigurationError as error:
            problems[name] = str(error)
    for name, problem in [*_among_images_of_others(path, pipelines), *_named_as_events_of_others(path, pipelines)]:
        problems[name] = problem
        pipelines.pop(name, None)
    return pipelines, problems


def _among_images_of_others(path: Path, pipelines: Mapping[str, Pipeline]) -> list[tuple[str, str]]:
    """Pipelines whose thumbnails another one would list as images, with what is wrong."""
    return [
        (
            one.name,
            f"{path}: [{one.name}] thumbnails = {_shown('thumbnails', one.thumbnails)}: it lies under "
            f"the images of [{other.name}], so that thumbnails would be listed as images. Change the value.",
        )
        for one in pipelines.values()
        for other in pipelines.values()
        if one.thumbnails is not None and f"{_place(one.thumbnails).rstrip('/')}/".startswith(_place(other.images))
    ]


def _named_as_events_of_others(path: Path, pipelines: Mapping[str, Pipeline]) -> list[tuple[str, str]]:
    """Pipelines whose DAG would have the id of another one's for events, with what is wrong."""
    return [
        (
            f"{name}_events",
            f"{path}: [{name}_events] has the DAG predict_{name}_events, and so have the events of [{name}]. Rename one of them.",
        )
        for name, pipeline in pipelines.items()
        if pipeline.events is not None and f"{name}_events" in pipelines
    ]


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist. Create it, or point AFTERIMAGE_PIPELINES at your file."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}. Point AFTERIMAGE_PIPELINES at a file that this user may read."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}. Mend that line.") from None


def _pipeline(path: Path, name: str, table: object) -> Pipeline:
    if not isinstance(table, Mapping):
        raise ConfigurationError(
            f"{path}: {name} = {_shown(name, table)} stands outside a table. Every pipeline is one: put it under a [name] line."
        )
    if "name" in table:
        raise ConfigurationError(f"{path}: [{name}] has a key 'name'. The table's own name is the name: remove it.")
    pipeline = make_pipeline({"name": name, **table}, f"{path}: [{name}]")
    base = path.resolve().parent
    images, thumbnails = absolute_uri(pipeline.images, base), pipeline.thumbnails
    if thumbnails is not None:
        thumbnails = absolute_uri(thumbnails, base)
        try:
            _check_apart(
                thumbnails, images
            )  # Once more: a relative path and an absolute one can be told apart only now.
        except ValueError as error:
            shown = _shown("thumbnails", pipeline.thumbnails)
            raise ConfigurationError(f"{path}: [{name}] thumbnails = {shown}: {error}. Change the value.") from None
    return pipeline.model_copy(
        update={"images": images, "thumbnails": thumbnails, "model": absolute_models(pipeline.model, base)}
    )


def make_pipeline(values: Mapping[str, Any], where: str) -> Pipeline:
    """A pipeline of these values, checked. Raises ConfigurationError; each of its lines begins with `where`."""
    try:
        return Pipeline(**values)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_table_problems(where, error))) from None


def _table_problems(where: str, error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        fields = Notify.model_fields if key.startswith("notify.") else Pipeline.model_fields
        allowed = ", ".join(field for field in fields if field != "name")
        if problem["type"] == "extra_forbidden":
            yield f"{where} has an unknown key {key!r} (= {_shown(key, problem['input'])}). Allowed keys: {allowed}."
        elif problem["type"] == "missing":
            yield f'{where} lacks the key {key!r}. Add {key} = "..."; README.md, Configuration, has an example.'
        elif problem["input"] is None:
            yield f"{where} lacks the key {key!r}: {_said(problem['msg'])}. Add it."
        else:
            yield f"{where} {key} = {_shown(key, problem['input'])}: {_said(problem['msg'])}. Change the value."


def _shown(key: str, value: object) -> str:
    """A value in a message, which Airflow's UI shows to everybody: what is a secret by its key or its form stays hidden."""
    is_secret = _SECRETIVE.search(key) or (key.split(".")[0] == "notify" and not _HARMLESS.fullmatch(key))
    return "***" if is_secret else without_secrets(repr(value))


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


def find_pipeline(path: Path, name: str) -> Pipeline:
    """One pipeline by its name. Raises ConfigurationError with what is wrong with it, or with the names that exist."""
    pipelines, problems = read_pipelines(path)
    if name in problems:
        raise ConfigurationError(problems[name])
    if name not in pipelines:
        raise ConfigurationError(
            f"{path} has no pipeline {name!r}. It has: {', '.join(pipelines) or 'none'}. Add a table [{name}] or name one."
        )
    return pipelines[name]
