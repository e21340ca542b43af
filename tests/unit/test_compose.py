"""docker-compose.yaml and .env.example, read and checked, because no engine runs here.

test_compose_profiles.py has the profiles, test_image.py the Dockerfile, test_monitoring.py what Prometheus reads.
"""

from __future__ import annotations

import re

import pytest

from tasks.location import parse_location
from tasks.pipelines import load_pipelines
from tasks.settings import PROJECT, Settings
from tests.compose import AIRFLOW, CELERY, COMPOSE, SERVICES, TEXT, conditions, example

LONG_RUNNING = tuple(name for name in SERVICES if name != "init")
SECRETS = ("FERNET_KEY", "JWT_SECRET", "SECRET_KEY", "ACCESS_KEY", "PASSWORD")
# ${NAME}, ${NAME:-default} and ${NAME:?message}; $$ is a dollar.
VARIABLE = re.compile(r"(?<!\$)\$(?:\{(?P<name>\w+)(?P<rest>[^}]*)\}|(?P<bare>\w+))")


@pytest.mark.parametrize("name", [name for name in AIRFLOW if name != "init"])
def test_airflow_starts_after_databases_store_and_init(name: str) -> None:
    found = conditions(name)

    assert found.pop("init") == "service_completed_successfully"
    assert {"postgres", "store"} <= set(found)
    assert set(found.values()) == {"service_healthy"}


def test_init_waits_for_what_it_fills_and_does_not_start_again() -> None:
    assert conditions("init") == {"postgres": "service_healthy", "store": "service_healthy"}
    assert SERVICES["init"]["restart"] == "no"


@pytest.mark.parametrize("name", ["scheduler", *CELERY])
def test_schedulers_and_workers_wait_for_the_api_that_tasks_report_to(name: str) -> None:
    assert conditions(name)["api-server"] == "service_healthy"


def test_up_wait_is_not_failed_by_a_container_that_ends() -> None:
    ending = [name for name, service in SERVICES.items() if service["restart"] == "no"]

    for name in ending:
        assert any(
            conditions(other).get(name) == "service_completed_successfully" for other in SERVICES if other not in ending
        )


@pytest.mark.parametrize("name", SERVICES)
def test_whatever_is_waited_for_can_be_healthy(name: str) -> None:
    for other, condition in conditions(name).items():
        assert condition != "service_healthy" or "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_service_that_stays_has_a_health_check_and_starts_again(name: str) -> None:
    check = SERVICES[name]["healthcheck"]

    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("postgres", "pg_isready"),
        ("store", ":8333/healthz"),
        ("api-server", ":8080/api/v2/monitor/health"),
        ("scheduler", ":8974/health"),
        ("celery-scheduler", ":8974/health"),
        ("cpu-worker", '"celery@$$HOSTNAME" ping'),
        ("gpu-worker", '"celery@$$HOSTNAME" ping'),
        ("shard-worker", '"celery@$$HOSTNAME" ping'),
        ("broker", "ping"),
        ("statsd-exporter", ":9102/metrics"),
        ("prometheus", ":9090/-/healthy"),
        ("dag-processor", "DagProcessorJob"),
        ("triggerer", "TriggererJob"),
    ],
)
def test_each_health_check_asks_its_own_service(name: str, part: str) -> None:
    assert part in " ".join(SERVICES[name]["healthcheck"]["test"])


@pytest.mark.parametrize("name", AIRFLOW)
def test_what_airflow_3_needs_is_set(name: str) -> None:
    environment = SERVICES[name]["environment"]

    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://api-server:8080/execution/"
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith("postgresql+psycopg2://airflow:")
    assert environment["AIRFLOW__CORE__EXECUTOR"] == ("CeleryExecutor" if name in CELERY else "LocalExecutor")
    assert environment["AIRFLOW__CORE__AUTH_MANAGER"].endswith(".FabAuthManager")
    assert environment["AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK"] == "True"
    assert environment["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"
    assert environment["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"
    assert environment["AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT"] == "60"


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW_JWT_SECRET"),
        ("AIRFLOW__API__SECRET_KEY", "AIRFLOW_SECRET_KEY"),
        ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_FERNET_KEY"),
    ],
)
def test_all_of_airflow_shares_each_secret(setting: str, variable: str) -> None:
    assert {SERVICES[name]["environment"][setting] for name in AIRFLOW} == {
        f"${{{variable}:?run scripts/make-env first}}"
    }


@pytest.mark.parametrize("name", AIRFLOW)
def test_the_pipeline_finds_its_code_cache_and_store(name: str) -> None:
    environment = SERVICES[name]["environment"]
    known = {f"AFTERIMAGE_{field.upper()}" for field in Settings.model_fields}

    assert environment["PYTHONPATH"] == "/opt/afterimage"
    # Tasks write rows; only what migrates may make tables.
    user = "afterimage_owner" if name == "init" else "afterimage"
    assert environment["AFTERIMAGE_DATABASE"].startswith(f"postgresql://{user}:")
    assert environment["AFTERIMAGE_S3_ENDPOINT"] == "http://store:8333"
    assert {key for key in environment if key.startswith("AFTERIMAGE_")} <= known


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_by_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")

    assert image
    assert re.fullmatch(r"v?\d+(\.\d+)+", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_variables_have_a_default_or_must_be_set_and_are_in_the_example() -> None:
    given = example()
    found = list(VARIABLE.finditer(TEXT))

    assert found
    for variable in found:
        name = variable["name"] or variable["bare"]
        assert (variable["rest"] or "")[:2] in (":-", ":?"), f"{name} may be empty"
        assert name in given


def test_every_line_of_the_example_is_used() -> None:
    assert set(example()) == {variable["name"] for variable in VARIABLE.finditer(TEXT)}


def test_secrets_must_be_set_and_are_nowhere_written_down() -> None:
    secrets = [variable for variable in VARIABLE.finditer(TEXT) if variable["name"].endswith(SECRETS)]

    assert {variable["name"] for variable in secrets} == {name for name, value in example().items() if not value}
    assert all(variable["rest"].startswith(":?") for variable in secrets)
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if key.endswith(SECRETS):
                assert VARIABLE.fullmatch(value), f"{key} is written down"


def test_defaults_are_those_of_the_example() -> None:
    given = example()

    for variable in VARIABLE.finditer(TEXT):
        if variable["rest"].startswith(":-"):
            assert variable["rest"][2:] == given[variable["name"]]


def test_both_databases_are_made_for_the_users_that_ask_for_them() -> None:
    script = (PROJECT / "docker" / "databases.sh").read_text(encoding="utf-8")
    environment = SERVICES["init"]["environment"]

    for key in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AFTERIMAGE_DATABASE"):
        found = re.fullmatch(
            r"\S+://(?P<user>\w+):\$\{(?P<password>\w+):\?[^}]*\}@postgres:5432/(?P<name>\w+)", environment[key]
        )
        assert found is not None
        assert f"CREATE DATABASE {found['name']} OWNER {found['user']};" in script
        assert f'"${found["password"]}"' in script
        assert found["password"] in SERVICES["postgres"]["environment"]
    assert "./docker/databases.sh:/docker-entrypoint-initdb.d/databases.sh:ro" in SERVICES["postgres"]["volumes"]
    assert "./tasks/cache/roles.sql:/opt/roles.sql:ro" in SERVICES["postgres"]["volumes"]


def test_the_store_takes_the_keys_that_the_pipeline_uses() -> None:
    store, pipeline = SERVICES["store"]["environment"], SERVICES["scheduler"]["environment"]

    assert store["AWS_ACCESS_KEY_ID"] == pipeline["AFTERIMAGE_S3_ACCESS_KEY"]
    assert store["AWS_SECRET_ACCESS_KEY"] == pipeline["AFTERIMAGE_S3_SECRET_KEY"]
    assert "-master.telemetry=false" in SERVICES["store"]["command"]
    # All parts but the S3 gateway are without passwords.
    assert "-ip.bind=127.0.0.1" in SERVICES["store"]["command"]


def test_the_demo_pipeline_lies_in_the_store() -> None:
    pipeline = load_pipelines(PROJECT / "docker" / "pipelines.toml")["digits"]
    images, model = parse_location(pipeline.images), parse_location(pipeline.models[0])

    assert (images.scheme, model.scheme) == ("s3", "s3")
    assert images.root != model.root, "the files of the model would be listed as images"


def test_volumes_are_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}

    assert {name for name in used if not name.startswith("./")} == set(COMPOSE["volumes"])
    assert all((PROJECT / name).exists() for name in used if name.startswith("./"))
