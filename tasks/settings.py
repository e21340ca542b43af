"""What the environment decides: `AFTERIMAGE_*` variables, the same for all pipelines of one installation.

A wrong value is answered with a ConfigurationError that names the variable, the value found and the values allowed. What to
predict stands in pipelines.toml (pipelines.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import ConfigurationError
from tasks.uris import without_secrets

PROJECT = Path(__file__).resolve().parent.parent

Environment = TypeVar("Environment", bound=BaseSettings)


class Settings(BaseSettings):
    """What the environment decides, the same for all pipelines of one installation."""

    model_config = SettingsConfigDict(
        env_prefix="AFTERIMAGE_",
        env_ignore_empty=True,  # A compose file hands on an unset variable as an empty one.
        frozen=True,
        extra="ignore",
    )

    home: Path = Field(PROJECT / "var", description="Where the program keeps files: the default cache, models, demo.")
    pipelines: Path = Field(PROJECT / "pipelines.toml", description="The file with one table for each pipeline.")
    database: SecretStr | None = Field(None, description="URL of the cache; SQLite under `home` where it is not set.")
    executor: Literal["local", "celery", "kubernetes"] = Field(
        "local",
        description="Which of Airflow's executors shards ask for; local asks for none and takes Airflow's first.",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")] = Field(
        "auto", description="Where the forward pass runs: auto, cpu, cuda or, of several GPUs, cuda:N."
    )
    runtime: Literal["auto", "openvino", "torch", "onnxruntime", "tensorrt"] = Field(
        "auto", description="What runs the forward pass; the best for the device and the bundle where it is auto."
    )
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The most images in one forward pass; what the runtime finds best where it is not set."
    )
    readers: Annotated[int, Field(ge=1)] = Field(64, description="Most objects read at the same time.")
    decoders: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Images decoded at the same time; as many as cores where it is not set."
    )
    queue_mib: Annotated[int, Field(ge=1)] = Field(
        256, description="MiB of files and pixels that wait between the stages of one worker."
    )
    max_image_mib: Annotated[int, Field(ge=1)] = Field(
        512, description="MiB of an object that is still read; a larger one is quarantined as too_many_bytes."
    )
    cost_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="What an hour of a worker costs, in dollars: estimates are made with it."
    )
    keep_vanished_days: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Days after which maintain_cache drops the rows of images whose objects are gone; never where unset.",
    )
    keep_predictions_days: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Days after which it drops predictions of models that no pipeline has; never where unset."
    )
    prune_orphans: bool = Field(False, description="Whether it drops predictions whose digest no image has.")
    ray_address: Annotated[str, Field(pattern=r"^(auto|(ray://)?[^\s/]+:\d{1,5})$")] | None = Field(
        None, description='The Ray cluster of pipelines with engine = "ray": ray://HOST:10001, HOST:6379 or auto.'
    )
    s3_endpoint: str | None = Field(None, description="An S3-compatible server; AWS where it is not set.")
    s3_region: str | None = Field(None, description="Region of the bucket.")
    s3_access_key: str | None = Field(None, description="Access key; boto3's own chain where it is not set.")
    s3_secret_key: SecretStr | None = Field(None, description="The secret that belongs to the access key.")

    @property
    def database_url(self) -> str:
        """URL of the cache, with its password: never log it."""
        if self.database is not None:
            return self.database.get_secret_value()
        return f"sqlite:///{self.home.resolve() / 'afterimage.db'}"

    @property
    def compiled(self) -> Path:
        """Folder of compiled models; it can be deleted at any time."""
        return self.home / "compiled"

    @property
    def bundles(self) -> Path:
        """Folder of the bundles that URIs were turned into."""
        return self.home / "bundles"

    @property
    def models(self) -> Path:
        """Folder of the bundles that `./afterimage models` keeps by name."""
        return self.home / "models"


def load_settings(**overrides: Any) -> Settings:
    """Read the environment; keyword arguments win over it. Raises ConfigurationError."""
    return read_environment(Settings, **overrides)


def read_environment(kind: type[Environment], **overrides: Any) -> Environment:
    """Settings of any kind, from the variables with its prefix; keyword arguments win. Raises ConfigurationError."""
    try:
        return kind(**overrides)
    except ValidationError as error:
        prefix = str(kind.model_config["env_prefix"])
        raise ConfigurationError("\n".join(_setting_problems(error, prefix))) from None


def connection_overrides(database: Any | None, storage: Any | None) -> dict[str, Any]:
    """What Airflow's Connections afterimage_database and afterimage_storage say, for load_settings; None where there is none."""
    given: dict[str, Any] = {}
    if database is not None:
        given["database"] = database.get_uri()
    if storage is not None:
        extra = storage.extra_dejson
        given |= {
            "s3_access_key": storage.login or None,
            "s3_secret_key": storage.password or None,
            "s3_endpoint": extra.get("endpoint_url"),
            "s3_region": extra.get("region_name"),
        }
    return {name: value for name, value in given.items() if value is not None}


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that give another process of this machine the same settings, secrets included: never log them."""
    given = ((name, getattr(settings, name)) for name in sorted(settings.model_fields_set))
    return {f"AFTERIMAGE_{name.upper()}": _plain(value) for name, value in given if value is not None}


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _setting_problems(error: ValidationError, prefix: str) -> Iterable[str]:
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        found = without_secrets(repr(problem["input"]))
        yield f"{prefix}{name.upper()} is {found}: {problem['msg']}. Set it to such a value, or unset it."
