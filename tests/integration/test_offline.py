"""Nothing leaves this machine by itself: no usage report, no look for an update, no name asked for.

Each command runs in a network whose only exit is watched (tests/no_way_out.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT, outer_environment
from tests.pictures import write_pictures, write_small_bundle

pytestmark = [
    pytest.mark.alone,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.geteuid() != 0
        or not all(map(shutil.which, ("unshare", "ip", "mount")))
        or not os.path.exists("/dev/net/tun"),
        reason="a network of its own needs root, unshare, ip, mount and /dev/net/tun",
    ),
]

PIPELINE = '[digits]\nimages = "bucket"\nmodel = "model"\nschedule = "@daily"\n'

# Switches that an environment may have set already, and that would hide what the program does by itself.
SWITCHES = ("CI", "DO_NOT_TRACK", "SCARF_NO_ANALYTICS", "RAY_USAGE_STATS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")


def watched(folder: Path, code: str | list[str], **changes: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run Python with no way out; how it ended, and where its packets wanted to go."""
    command = [sys.executable, *(["-c", code] if isinstance(code, str) else code)]
    environment = {
        name: value
        for name, value in outer_environment(**changes).items()
        if name not in SWITCHES and not name.startswith("AWS_")
    }
    wanted = folder / "wanted.json"
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(ROOT / "tests" / "no_way_out.py"), str(wanted), *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    if not wanted.exists():
        pytest.skip(f"no network of its own here: {done.stderr.strip().splitlines()[-1:]}")
    return done, json.loads(wanted.read_text(encoding="utf-8"))


def predicting(folder: Path, images: str, **changes: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    given: Mapping[str, str] = {"AFTERIMAGE_HOME": str(folder / "home"), **changes}
    return watched(folder, ["-m", "tasks", "predict", "--images", images, "--model", str(folder / "model")], **given)


def test_what_wants_to_leave_is_seen(tmp_path: Path) -> None:
    """Else the other tests would prove nothing."""
    code = (
        "import socket\n"
        "for call in (lambda: socket.create_connection(('198.51.100.7', 443), 0.5),"
        " lambda: socket.getaddrinfo('reports.example', 443)):\n"
        "    try: call()\n    except OSError: pass\n"
    )
    done, wanted = watched(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "198.51.100.7:443" in wanted
    assert any("asks for reports.example" in where for where in wanted)


def test_the_demo_works_and_sends_nothing(tmp_path: Path) -> None:
    """Airflow, OpenVINO, torch and boto3 together, twice over the demo's bucket."""
    (tmp_path / "pipelines.toml").write_text(PIPELINE)
    done, wanted = watched(
        tmp_path,
        ["-m", "demo"],
        OMP_NUM_THREADS="1",  # on a loaded machine torch's threads wait for each other
        AIRFLOW_HOME=str(tmp_path / "airflow"),
        AFTERIMAGE_HOME=str(tmp_path / "home"),
        AFTERIMAGE_PIPELINES=str(tmp_path / "pipelines.toml"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 reads, 0 forward passes" in done.stdout
    assert wanted == []


def test_a_quantisation_reports_nothing(tmp_path: Path) -> None:
    """NNCF and OpenVINO tell their makers of each run, where nobody stops them."""
    pytest.importorskip("nncf")
    write_pictures(tmp_path / "images", 24)
    write_small_bundle(tmp_path / "small")
    given = "--precision int8 --calibrate images --judge images --rounds 1 --min-agreement 0.5 --to new --json"
    command = ["-m", "tasks", "models", "optimise", "small", *given.split()]
    done, wanted = watched(tmp_path, command, AFTERIMAGE_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "model.toml").exists()
    assert wanted == []


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"AFTERIMAGE_S3_ACCESS_KEY": "key", "AFTERIMAGE_S3_SECRET_KEY": "secret"}, False),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, False),
        ({}, True),
    ],
    ids=["keys", "switched off", "no keys"],
)
def test_the_machine_is_asked_for_keys_only_where_there_are_none(
    tmp_path: Path, environment: dict[str, str], asked: bool
) -> None:
    """boto3's last resort is the cloud's own address for the roles of its machines, on the link; and nothing beyond it."""
    code = (
        "import os, tasks.storage.s3 as s3\nfrom tasks.settings import load_settings\n"
        f"os.environ.update({environment!r})\n"
        "store = s3.S3Store('bucket', load_settings(s3_endpoint='http://127.0.0.1:1'))\n"
        "try: store._client.list_objects_v2(Bucket='bucket')\nexcept Exception as error: print(type(error).__name__)\n"
    )
    done, wanted = watched(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("EndpointConnectionError", "NoCredentialsError")
    assert bool(wanted) == asked
    assert set(wanted) <= {"169.254.169.254:80"}


def test_a_folder_never_needs_a_network(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 3)
    write_small_bundle(tmp_path / "model")
    done, wanted = predicting(tmp_path, str(tmp_path / "images"))
    assert done.returncode == 0, done.stderr
    assert wanted == []
