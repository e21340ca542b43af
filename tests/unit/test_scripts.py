"""What is run beside Compose: scripts/make-env, scripts/make-gpu-workers, docker/init.sh."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from cryptography.fernet import Fernet

from tasks.settings import PROJECT
from tests.compose import example, values


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


@pytest.fixture
def override(checkout: Path) -> Path:
    """Where scripts/make-gpu-workers writes to."""
    shutil.copy(PROJECT / "scripts" / "make-gpu-workers", checkout / "scripts")
    return checkout / "docker-compose.override.yaml"


def make_gpu_workers(override: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [override.parent / "scripts" / "make-gpu-workers", *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_each_gpu_gets_a_worker_and_the_pool_a_slot_for_each(override: Path) -> None:
    done = make_gpu_workers(override, "3")
    made = yaml.safe_load(override.read_text(encoding="utf-8"))["services"]

    assert done.returncode == 0, done.stderr
    assert made.pop("init") == {"environment": {"GPU_SLOTS": "3"}}
    assert set(made) == {"gpu-worker-1", "gpu-worker-2"}
    assert {worker["environment"]["CUDA_VISIBLE_DEVICES"] for worker in made.values()} == {"1", "2"}
    for name, worker in made.items():
        # Lists add up under `extends`, so it must bring none; profile, command and devices are those of GPU 0.
        assert worker.pop("extends") == {"file": "docker-compose.yaml", "service": "gpu-worker"}
        assert worker == {"hostname": name, "environment": {"CUDA_VISIBLE_DEVICES": name[-1]}}


def test_one_gpu_needs_no_further_worker(override: Path) -> None:
    make_gpu_workers(override, "1")

    assert yaml.safe_load(override.read_text(encoding="utf-8"))["services"] == {
        "init": {"environment": {"GPU_SLOTS": "1"}}
    }


@pytest.mark.parametrize("count", ["0", "07", "two", "-1"])
def test_what_is_no_number_of_gpus_writes_nothing(override: Path, count: str) -> None:
    done = make_gpu_workers(override, count)

    assert done.returncode == 2
    assert "is no number of GPUs" in done.stderr
    assert not override.exists()


def test_an_override_that_is_there_stays(override: Path) -> None:
    override.write_text("services: {}\n", encoding="utf-8")
    done = make_gpu_workers(override, "2")

    assert done.returncode == 1
    assert "exists" in done.stderr
    assert override.read_text(encoding="utf-8") == "services: {}\n"


@pytest.mark.parametrize(
    "script", ["docker/init.sh", "docker/databases.sh", "scripts/make-env", "scripts/make-gpu-workers"]
)
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


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("tini -g -- airflow celery worker --queues=gpu", "celery inspect --timeout 10 --destination celery@here ping"),
        ("tini -g -- airflow api-server", "python docker/answers.py http://127.0.0.1:8080/api/v2/monitor/health"),
        ("tini -g -- airflow scheduler", "python docker/answers.py http://127.0.0.1:8974/health"),
        ("tini -g -- python -m tasks predict photos", ""),
    ],
)
def test_a_container_is_asked_for_what_it_runs(command: str, asked: str, tmp_path: Path) -> None:
    for name in ("celery", "python"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" "$CELERY_BROKER_URL"\nexit 3\n')
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/bin:/usr/bin",
        "HOSTNAME": "here",
        "AIRFLOW__CELERY__BROKER_URL": "redis://b/0",
    }
    script = ["sh", str(PROJECT / "docker" / "healthy.sh"), command]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)

    broker = "redis://b/0" if "celery" in asked else ""
    assert done.stdout.strip() == f"{asked} {broker}".strip()
    assert done.returncode == (3 if asked else 0), "the answer decides"
