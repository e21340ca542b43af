"""Profiles of docker-compose.yaml: which services run, with which executor, and that Celery's find all they need."""

from __future__ import annotations

import pytest

from tests.compose import CELERY, SERVICES, WORKERS, active, conditions, example

ALWAYS = {"postgres", "store", "init", "api-server", "dag-processor", "triggerer"}
# Each executor's profile, with what it adds.
EXECUTORS = {
    "local": {"scheduler"},
    "celery": {"celery-scheduler", "broker", "cpu-worker", "gpu-worker"},
    "celery-cpu": {"celery-scheduler", "broker", "cpu-worker", "shard-worker"},
}
MONITORING = {"statsd-exporter", "prometheus"}


def queues(service: str) -> list[str]:
    """The queues that a worker listens to."""
    return [part.removeprefix("--queues=") for part in SERVICES[service]["command"] if part.startswith("--queues=")]


def test_these_services_and_no_others() -> None:
    assert active() == ALWAYS
    for profile, added in EXECUTORS.items():
        assert active(profile) == ALWAYS | added
        assert active(profile, "monitoring") == ALWAYS | added | MONITORING
    assert set(SERVICES) == ALWAYS.union(*EXECUTORS.values()) | MONITORING


def test_the_plain_stack_needs_no_flag() -> None:
    assert active(*example()["COMPOSE_PROFILES"].split(",")) == ALWAYS | EXECUTORS["local"]
    # An .env without it would start no scheduler; Compose refuses it instead.
    assert SERVICES["init"]["environment"]["COMPOSE_PROFILES"] == "${COMPOSE_PROFILES:?run scripts/make-env first}"


@pytest.mark.parametrize("others", [(), ("monitoring",)])
@pytest.mark.parametrize("profile", EXECUTORS)
def test_compose_finds_whatever_a_service_must_wait_for(profile: str, others: tuple[str, ...]) -> None:
    """It refuses a model in which a service depends on one of a profile that is not active."""
    running = active(profile, *others)

    for name in running:
        assert set(conditions(name)) <= running, name


@pytest.mark.parametrize(
    ("profile", "executor"),
    [("local", "LocalExecutor"), ("celery", "CeleryExecutor"), ("celery-cpu", "CeleryExecutor")],
)
def test_each_profile_has_one_scheduler_with_its_executor(profile: str, executor: str) -> None:
    (scheduler,) = (name for name in active(profile) if SERVICES[name].get("command") == ["airflow", "scheduler"])

    assert SERVICES[scheduler]["environment"]["AIRFLOW__CORE__EXECUTOR"] == executor
    # Docker refuses a second container of a name: two schedulers would share the tasks out between two executors.
    assert SERVICES[scheduler]["container_name"] == "afterimage-scheduler"


@pytest.mark.parametrize("profile", ["celery", "celery-cpu"])
def test_every_queue_has_a_worker_and_a_gpu_does_one_shard_at_a_time(profile: str) -> None:
    workers = [name for name in active(profile) if name in WORKERS]
    (shards,) = (name for name in workers if queues(name) == ["gpu"])

    assert sorted(queue for name in workers for queue in queues(name)) == ["default", "gpu"]
    assert "--concurrency=1" in SERVICES[shards]["command"]


def test_only_the_worker_with_a_gpu_reserves_one_and_it_does_without_processors() -> None:
    reserving = [name for name, service in SERVICES.items() if "deploy" in service]
    worker = SERVICES["gpu-worker"]

    assert reserving == ["gpu-worker"]
    assert worker["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    assert worker["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert worker["environment"]["AFTERIMAGE_DEVICE"] == "cuda"


@pytest.mark.parametrize("name", CELERY)
def test_celery_reaches_its_broker_and_recovers_by_the_heartbeat(name: str) -> None:
    environment = SERVICES[name]["environment"]
    half_an_hour = 1800  # after which a shard gives up its slot; longer where shard_seconds is above 300

    assert conditions(name)["broker"] == "service_healthy"
    assert (
        environment["AIRFLOW__CELERY__BROKER_URL"]
        == "redis://:${BROKER_PASSWORD:?run scripts/make-env first}@broker:6379/0"
    )
    assert int(environment["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]) > 10 * half_an_hour
    assert environment["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] == "60"
    assert environment["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL"] == "10"
    assert environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] == "1"


def test_nothing_but_the_pool_bounds_the_shards_of_celery() -> None:
    environment = SERVICES["celery-scheduler"]["environment"]

    assert int(environment["AIRFLOW__CORE__PARALLELISM"]) >= 1024


def test_the_broker_has_a_password_and_no_port() -> None:
    broker = SERVICES["broker"]

    assert broker["command"][:3] == ["valkey-server", "--requirepass", "${BROKER_PASSWORD:?run scripts/make-env first}"]
    assert "ports" not in broker
    assert "PONG" in broker["healthcheck"]["test"][1], "valkey-cli ends well when it is refused"


@pytest.mark.parametrize("name", ["scheduler", *WORKERS])
def test_whoever_runs_tasks_has_torch_and_time_for_a_last_commit(name: str) -> None:
    assert SERVICES[name]["build"]["target"] == "worker"
    assert SERVICES[name]["stop_grace_period"] == "60s"


def test_services_share_one_environment_and_those_of_celery_add_theirs() -> None:
    shared = SERVICES["api-server"]["environment"]
    celery = SERVICES["celery-scheduler"]["environment"]

    for name in ("scheduler", "dag-processor", "triggerer"):
        assert SERVICES[name]["environment"] == shared
    assert {**shared, **SERVICES["init"]["environment"]} == SERVICES["init"]["environment"]
    differing = {key for key, value in shared.items() if SERVICES["init"]["environment"][key] != value}
    assert differing == {"AFTERIMAGE_DATABASE"}, "init is the owner of the tables, tasks are not"
    assert shared.keys() < celery.keys()
    for name in WORKERS:
        assert celery.items() <= SERVICES[name]["environment"].items()
