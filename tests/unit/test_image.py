"""The Dockerfile and its locks, read and checked; and that core's packages are enough for Airflow's own services."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tasks.extras import EXTRAS
from tasks.settings import PROJECT
from tests.compose import SERVICES, WORKERS
from tests.conftest import ROOT, outer_environment
from tests.unit.test_bare_image import BLOCK, modules_beyond

DOCKERFILE = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
# Instructions of each stage, without comments, with their continued lines.
STAGES: dict[str, tuple[str, str]] = {
    found["name"]: (found["base"], found["body"])
    for found in re.finditer(
        r"^FROM (?P<base>\S+) AS (?P<name>\S+)\n(?P<body>.*?)(?=^FROM |\Z)",
        re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE),
        re.MULTILINE | re.DOTALL,
    )
}
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

RUNS_TASKS = {"init", "scheduler", *WORKERS}
CORE = {"api-server", "celery-scheduler", "dag-processor", "triggerer"}


def lineage(stage: str) -> list[str]:
    """A stage and the stages that it stands on."""
    base = STAGES[stage][0]
    return [stage, *(lineage(base) if base in STAGES else [])]


def locked(name: str) -> dict[str, str]:
    """{package: what is pinned of it, hashes included} of a lock."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    entries = re.findall(r"^(\S[^#\n]*?==(?:.*\\\n)*.*)\n", text, re.MULTILINE)
    return {re.split(r"[=\[ ]", entry)[0] + entry.partition(";")[2].partition("\\")[0]: entry for entry in entries}


def names(lock: str) -> set[str]:
    return {re.split(r"[ \[]", package)[0] for package in locked(lock)}


def test_there_are_two_targets_and_they_share_the_layers_of_cores_packages() -> None:
    assert lineage("core") == ["core", "core-packages"]
    assert lineage("worker") == ["worker", "worker-packages", "core-packages"]
    assert "source=requirements-core.txt" in STAGES["core-packages"][1]
    assert "source=requirements.txt" in STAGES["worker-packages"][1]
    assert DOCKERFILE.count("\nFROM ") == len(STAGES)
    assert 'CMD ["sh", "/opt/afterimage/docker/healthy.sh"]' in STAGES["core-packages"][1]


def test_the_worker_takes_every_extra_that_has_a_lock_and_none_by_itself() -> None:
    stage = STAGES["worker-packages"][1]

    assert 'ARG EXTRAS=""' in stage
    assert '--require-hashes -r "/extras/$extra.txt"' in stage
    assert set(EXTRAS.values()) == {path.stem for path in (PROJECT / "extras").glob("*.txt")}


def test_services_that_run_tasks_get_the_worker_and_the_others_do_not() -> None:
    built = {name: service for name, service in SERVICES.items() if "build" in service}

    assert set(built) == RUNS_TASKS | CORE
    for name, service in built.items():
        target = "worker" if name in RUNS_TASKS else "core"
        assert service["build"] == {"context": ".", "target": target}
        assert service["image"] == f"afterimage-{target}:{VERSION}"


def test_the_images_are_built_from_pinned_parts() -> None:
    for base, body in STAGES.values():
        assert base in STAGES or re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
        assert body.count("pip install") == body.count("--require-hashes")
    assert not re.search(r"^ADD |curl|wget", DOCKERFILE, re.MULTILINE), (
        "packages come from locks, and nothing else comes"
    )


@pytest.mark.parametrize("target", ["core", "worker"])
def test_an_image_runs_as_nobody_special_and_lists_what_it_holds(target: str) -> None:
    body = STAGES[target][1]

    assert body.rstrip().splitlines()[-1] == "USER 50000:0"
    assert f"COPY --from={target}-sbom /opt/sbom.json /opt/sbom.json" in body
    base, sbom = STAGES[f"{target}-sbom"]
    assert base == f"{target}-packages"
    assert "cyclonedx_py environment" in sbom
    assert sbom.rstrip().endswith("--output-file /opt/sbom.json /usr/local/bin/python")


def test_a_signal_reaches_all_processes_of_a_container() -> None:
    """A supervisor that is not told of SIGTERM does not tell its shard, which would then be killed between two commits."""
    assert 'ENTRYPOINT ["tini", "-g", "--"]' in STAGES["core-packages"][1]
    assert DOCKERFILE.count("ENTRYPOINT") == 1


def test_paths_in_the_image_are_the_paths_that_are_set() -> None:
    environment = SERVICES["scheduler"]["environment"]
    mounts = {volume.split(":")[1] for volume in SERVICES["scheduler"]["volumes"]}
    copied = set(re.findall(r"^COPY (\w+)/ \w+/$", STAGES["code"][1], re.MULTILINE))

    assert "WORKDIR /opt/afterimage\n" in STAGES["core-packages"][1]
    assert "PYTHONPATH=/opt/afterimage " in STAGES["core-packages"][1]
    assert copied == {"dags", "plugins", "tasks", "demo", "docker"}
    for key in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER"):
        assert Path(environment[key]).parent == Path("/opt/afterimage")
        assert Path(environment[key]).name in copied
    assert environment["AFTERIMAGE_PIPELINES"] == "/opt/afterimage/docker/pipelines.toml"
    assert {environment["AFTERIMAGE_HOME"], "/opt/airflow/logs", "/opt/afterimage/docker"} == mounts
    assert f"AFTERIMAGE_HOME={environment['AFTERIMAGE_HOME']} " in STAGES["core-packages"][1]


def test_volumes_that_airflow_writes_belong_to_its_user() -> None:
    made = re.search(r"install --directory --owner=afterimage .*\\\n(?P<folders>.*)\n", STAGES["core-packages"][1])
    written = {volume.split(":")[1] for volume in SERVICES["scheduler"]["volumes"] if not volume.endswith(":ro")}

    assert made is not None
    assert written <= set(made["folders"].split())


def test_the_build_context_is_an_allow_list_without_secrets() -> None:
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line[:1] not in ("", "#")]
    allowed = {line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")}
    locks = set(re.findall(r"\b(requirements[\w-]*\.txt) /|source=(requirements[\w-]*\.txt)", DOCKERFILE))

    assert lines[0] == "*"
    assert allowed == {"".join(found) for found in locks} | {"dags", "plugins", "tasks", "demo", "docker", "extras"}


def test_cores_lock_is_a_part_of_the_workers() -> None:
    core, worker = locked("requirements-core.txt"), locked("requirements.txt")

    assert len(core) > 100
    assert {package for package, pinned in core.items() if worker.get(package) != pinned} == set()


def test_core_computes_nothing() -> None:
    heavy = {"torch", "torchvision", "triton", "numpy", "scipy", "openvino", "numba", "pillow", "obstore", "matplotlib"}

    assert heavy <= names("requirements.txt")
    assert names("requirements-core.txt") & heavy == set()
    assert not any(name.startswith("nvidia-") for name in names("requirements-core.txt"))


@pytest.mark.parametrize("lock", ["requirements-core.txt", "requirements.txt"])
def test_celery_stays_below_the_version_that_its_provider_cannot_import(lock: str) -> None:
    found = re.search(r"^celery(?:\[\w+\])?==(\d+)\.(\d+)", (PROJECT / lock).read_text(encoding="utf-8"), re.MULTILINE)

    assert found is not None
    assert (int(found[1]), int(found[2])) < (5, 7)


def test_what_lists_the_packages_is_not_among_them() -> None:
    assert "cyclonedx-bom" in names("requirements-sbom.txt")
    assert "cyclonedx-bom" not in names("requirements.txt")


def beyond_core() -> set[str]:
    """Top-level modules of every distribution that is installed here and not in core's lock."""
    return modules_beyond(names("requirements-core.txt"))


def on_core(code: str, tmp_path: Path, *arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints that finds core's packages and nothing else."""
    command = [sys.executable, "-c", BLOCK + code, ",".join(sorted(beyond_core())), *arguments]
    given = outer_environment(
        AIRFLOW_HOME=str(tmp_path), AFTERIMAGE_DATABASE=f"sqlite:///{tmp_path}/cache.db", **environment
    )
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_core_lacks_what_computes_here() -> None:
    assert {"torch", "numpy", "PIL", "openvino", "obstore", "simplejpeg"} <= beyond_core()
    assert not {"airflow", "sqlalchemy", "kubernetes", "celery", "boto3", "typer", "psycopg"} & beyond_core()


SERVICES_OF_AIRFLOW = """
sys.path[:0] = ["dags", "plugins"]  # as Airflow does
from airflow.dag_processing.dagbag import DagBag
from airflow.executors.executor_loader import ExecutorLoader
bag = DagBag("dags", bundle_path="dags", bundle_name="dags-folder", known_pools={"default_pool", "gpu"})
importlib.import_module("afterimage_plugin").AfterimagePlugin().fastapi_apps
print(ExecutorLoader.import_default_executor_cls()[0].__name__, bag.import_errors, sorted(bag.dags))
"""


@pytest.mark.parametrize("executor", ["Celery", "Kubernetes"])
def test_core_schedules_parses_the_dags_and_serves_the_tab(executor: str, tmp_path: Path) -> None:
    printed = on_core(
        SERVICES_OF_AIRFLOW,
        tmp_path,
        AFTERIMAGE_PIPELINES=str(PROJECT / "docker" / "pipelines.toml"),
        AFTERIMAGE_EXECUTOR=executor.lower(),
        AIRFLOW__CORE__EXECUTOR=f"{executor}Executor",
    )

    assert printed.splitlines()[-1] == f"{executor}Executor {{}} ['maintain_cache', 'predict_digits']"


COMMANDS = """
from typer.testing import CliRunner
from tasks.cli import app
for command in sys.argv[2:]:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, (command, done.output, done.exception)
"""


def test_core_migrates_the_cache_and_reads_it(tmp_path: Path) -> None:
    on_core(COMMANDS, tmp_path, "migrate", "status --json", "failures --json")
