"""docker-compose.yaml, Dockerfile, .env.example and what they call: read and checked, because no engine runs here."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet

from tasks.location import parse_location
from tasks.pipelines import load_pipelines
from tasks.settings import PROJECT, Settings

Service = dict[str, Any]

TEXT = (PROJECT / "docker-compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Service] = COMPOSE["services"]
DOCKERFILE = (PROJECT / "Dockerfile").read_text(encoding="utf-8")

AIRFLOW = ("init", "api-server", "scheduler", "dag-processor", "triggerer")
LONG_RUNNING = tuple(name for name in SERVICES if name != "init")
SECRETS = ("FERNET_KEY", "JWT_SECRET", "SECRET_KEY", "ACCESS_KEY", "PASSWORD")
# ${NAME}, ${NAME:-default} and ${NAME:?message}; $$ is a dollar.
VARIABLE = re.compile(r"(?<!\$)\$(?:\{(?P<name>\w+)(?P<rest>[^}]*)\}|(?P<bare>\w+))")


def example() -> dict[str, str]:
    """Name and value of every line of .env.example."""
    return values(PROJECT / ".env.example")


def values(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def conditions(service: str) -> dict[str, str]:
    return {name: wait["condition"] for name, wait in SERVICES[service].get("depends_on", {}).items()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what scripts/make-env needs."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(PROJECT / "scripts" / "make-env", tmp_path / "scripts")
    shutil.copy(PROJECT / ".env.example", tmp_path)
    return tmp_path


def make_env(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/make-env from another folder, as anybody might."""
    return subprocess.run([checkout / "scripts" / "make-env"], cwd="/", capture_output=True, text=True, check=False)


def test_these_services_and_no_others() -> None:
    assert set(SERVICES) == {"postgres", "store", *AIRFLOW}


@pytest.mark.parametrize("name", [name for name in AIRFLOW if name != "init"])
def test_airflow_starts_after_databases_store_and_init(name: str) -> None:
    found = conditions(name)

    assert found.pop("init") == "service_completed_successfully"
    assert {"postgres", "store"} <= set(found)
    assert set(found.values()) == {"service_healthy"}


def test_init_waits_for_what_it_fills_and_does_not_start_again() -> None:
    assert conditions("init") == {"postgres": "service_healthy", "store": "service_healthy"}
    assert SERVICES["init"]["restart"] == "no"


def test_the_scheduler_waits_for_the_api_that_tasks_report_to() -> None:
    assert conditions("scheduler")["api-server"] == "service_healthy"


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
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
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
    assert environment["AFTERIMAGE_DATABASE"].startswith("postgresql://afterimage:")
    assert environment["AFTERIMAGE_S3_ENDPOINT"] == "http://store:8333"
    assert {key for key in environment if key.startswith("AFTERIMAGE_")} <= known


def test_all_of_airflow_runs_one_image_with_one_environment() -> None:
    assert {SERVICES[name]["image"] for name in AIRFLOW} == {"afterimage:0.1.0"}
    shared = [SERVICES[name]["environment"] for name in AIRFLOW if name != "init"]

    assert all(environment == shared[0] for environment in shared)
    assert shared[0].items() <= SERVICES["init"]["environment"].items()


def test_paths_in_the_image_are_the_paths_that_are_set() -> None:
    environment = SERVICES["scheduler"]["environment"]
    mounts = {volume.split(":")[1] for volume in SERVICES["scheduler"]["volumes"]}
    copied = set(re.findall(r"^COPY (\w+)/ \w+/$", DOCKERFILE, re.MULTILINE))

    assert "WORKDIR /opt/afterimage\n" in DOCKERFILE
    assert "PYTHONPATH=/opt/afterimage " in DOCKERFILE
    assert copied == {"dags", "plugins", "tasks", "demo", "docker"}
    for key in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER"):
        assert Path(environment[key]).parent == Path("/opt/afterimage")
        assert Path(environment[key]).name in copied
    assert environment["AFTERIMAGE_PIPELINES"] == "/opt/afterimage/docker/pipelines.toml"
    assert {environment["AFTERIMAGE_HOME"], "/opt/airflow/logs", "/opt/afterimage/docker"} == mounts


def test_volumes_that_airflow_writes_belong_to_its_user() -> None:
    made = re.search(r"install --directory --owner=afterimage .*\\\n(?P<folders>.*)\n", DOCKERFILE)
    written = {volume.split(":")[1] for volume in SERVICES["scheduler"]["volumes"] if not volume.endswith(":ro")}

    assert made is not None
    assert written <= set(made["folders"].split())
    assert re.search(r"^USER 50000:0$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_built_from_pinned_parts() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)

    assert bases
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases)
    assert DOCKERFILE.count("--require-hashes") == 2
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert SERVICES["init"]["image"] == f"afterimage:{project['version']}"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_by_a_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")

    assert image
    assert re.fullmatch(r"\d+(\.\d+)+", tag)


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


def test_make_env_fills_every_value_with_a_secret_of_its_own(checkout: Path) -> None:
    done = make_env(checkout)
    made, given = values(checkout / ".env"), example()

    assert done.returncode == 0, done.stderr
    assert set(made) == set(given)
    assert {name: made[name] for name, value in given.items() if value} == {n: v for n, v in given.items() if v}
    fresh = [made[name] for name, value in given.items() if not value]
    assert len(set(fresh)) == len(fresh)
    assert min(len(value) for value in fresh) >= 32
    assert all(secret not in done.stdout for secret in fresh)
    assert (checkout / ".env").stat().st_mode & 0o077 == 0


def test_make_env_makes_a_key_that_fernet_takes(checkout: Path) -> None:
    make_env(checkout)
    key = values(checkout / ".env")["AIRFLOW_FERNET_KEY"]

    assert len(base64.urlsafe_b64decode(key)) == 32
    assert Fernet(key).decrypt(Fernet(key).encrypt(b"a password")) == b"a password"


def test_passwords_fit_into_a_url(checkout: Path) -> None:
    make_env(checkout)

    for name, value in values(checkout / ".env").items():
        if name.endswith("PASSWORD"):
            assert value.isalnum()


def test_make_env_leaves_an_env_that_is_there(checkout: Path) -> None:
    make_env(checkout)
    before = (checkout / ".env").read_bytes()
    again = make_env(checkout)

    assert again.returncode != 0
    assert ".env exists" in again.stderr
    assert (checkout / ".env").read_bytes() == before


def test_two_checkouts_share_no_secret(checkout: Path) -> None:
    make_env(checkout)
    first = values(checkout / ".env")
    (checkout / ".env").unlink()
    make_env(checkout)
    second = values(checkout / ".env")

    assert all(first[name] != second[name] for name, value in example().items() if not value)


@pytest.mark.parametrize("script", ["docker/init.sh", "docker/databases.sh", "scripts/make-env"])
def test_scripts_are_valid_shell_and_stop_at_the_first_failure(script: str) -> None:
    checked = subprocess.run(["sh", "-n", PROJECT / script], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
    # The postgres image reads a script that cannot be executed into its own shell, and `set -u` would stay there.
    assert os.access(PROJECT / script, os.X_OK)
    assert "\nset -eu\n" in (PROJECT / script).read_text(encoding="utf-8")


def test_init_takes_its_steps_in_order_and_ends_with_the_first_that_fails(tmp_path: Path) -> None:
    """Stand-ins for airflow and python write down how they were called; the pool cannot be made."""
    for name in ("airflow", "python"):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n[ "$1" != "$FAILS" ]\n', encoding="utf-8")
        stand_in.chmod(0o755)

    def steps(fails: str) -> tuple[int, list[str]]:
        calls = tmp_path / f"calls-{fails}"
        given = {"AIRFLOW_ADMIN_USER": "admin", "AIRFLOW_ADMIN_PASSWORD": "secret", "GPU_SLOTS": "2"}
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "FAILS": fails, **given}
        done = subprocess.run(["sh", PROJECT / "docker" / "init.sh"], env=environment, capture_output=True, check=False)
        return done.returncode, calls.read_text(encoding="utf-8").splitlines()

    code, called = steps(fails="nothing")
    assert code == 0
    starts = ["airflow db migrate", "python -m tasks migrate", "airflow pools set gpu 2 ", "airflow users create "]
    assert [line.startswith(start) for line, start in zip(called, starts, strict=False)] == [True] * 4
    assert called[4:] == ["python -m demo.seed"]

    code, called = steps(fails="pools")
    assert code != 0
    assert len(called) == 3


def test_both_databases_are_made_for_the_users_that_ask_for_them() -> None:
    script = (PROJECT / "docker" / "databases.sh").read_text(encoding="utf-8")
    environment = SERVICES["scheduler"]["environment"]

    for key in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AFTERIMAGE_DATABASE"):
        found = re.fullmatch(
            r"\S+://(?P<user>\w+):\$\{(?P<password>\w+):\?[^}]*\}@postgres:5432/(?P<name>\w+)", environment[key]
        )
        assert found is not None
        assert f"CREATE DATABASE {found['name']} OWNER {found['user']};" in script
        assert f'"${found["password"]}"' in script
        assert found["password"] in SERVICES["postgres"]["environment"]
    assert "./docker/databases.sh:/docker-entrypoint-initdb.d/databases.sh:ro" in SERVICES["postgres"]["volumes"]


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


def test_the_build_context_is_an_allow_list_without_secrets() -> None:
    lines = [
        line
        for line in (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line[:1] not in ("", "#")
    ]
    allowed = {line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")}

    assert lines[0] == "*"
    assert allowed == {"requirements.txt", "requirements-uv.txt", "dags", "plugins", "tasks", "demo", "docker"}
