"""What Prometheus reads of a shard: Airflow's StatsD client as docker-compose.yaml sets it, against docker/statsd.yaml."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.settings import PROJECT
from tests.compose import SERVICES, example
from tests.conftest import ROOT, outer_environment

MAPPINGS: list[dict[str, Any]] = yaml.safe_load((PROJECT / "docker" / "statsd.yaml").read_text(encoding="utf-8"))[
    "mappings"
]

SEND = """
import sys
sys.path.insert(0, "dags")
from afterimage_metrics import send
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from tasks.observation import Observation
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)  # as a task's process begins
send("digits", Observation("NVIDIA H100 80GB HBM3", {"predicted": 9}, {"decode": 1.5}, {"processor": 0.5}, {"forward": 0.25}))
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines that a shard sends, from a process with the settings of docker-compose.yaml."""
    settings = {k: v for k, v in SERVICES["scheduler"]["environment"].items() if k.startswith("AIRFLOW__METRICS__")}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.5)
        environment = outer_environment(
            **settings
            | {
                "AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")),
                "AIRFLOW__METRICS__STATSD_ON": "True",
                "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
                "AIRFLOW__METRICS__STATSD_PORT": str(server.getsockname()[1]),
            }
        )
        subprocess.run([sys.executable, "-c", SEND], cwd=ROOT, env=environment, check=True, capture_output=True)
        heard: list[str] = []
        try:
            while True:
                heard += server.recv(65_536).decode().splitlines()
        except TimeoutError:
            return [line for line in heard if ".afterimage." in line]


def mapped(line: str) -> tuple[str, dict[str, str]]:
    """Name and labels that statsd-exporter gives to a line of StatsD with tags as InfluxDB writes them."""
    name, *tags = line.partition(":")[0].split(",")
    for mapping in MAPPINGS:
        found = re.fullmatch(re.escape(mapping["match"]).replace(r"\*", r"([^.]*)"), name)
        if found is not None:
            labels = {label: value.replace("$1", found[1]) for label, value in mapping["labels"].items()}
            return mapping["name"], labels | dict(tag.split("=", 1) for tag in tags)
    raise AssertionError(f"no mapping for {line}")


def test_outcome_and_stage_become_labels_beside_pipeline_and_device(lines: list[str]) -> None:
    assert sorted((mapped(line) for line in lines), key=str) == [
        ("afterimage_images_total", {"outcome": "predicted", "pipeline": "digits", "device": "NVIDIA_H100_80GB_HBM3"}),
        ("afterimage_queue_fill", {"stage": "forward", "pipeline": "digits", "device": "NVIDIA_H100_80GB_HBM3"}),
        (
            "afterimage_stage_milliseconds_total",
            {"stage": "decode", "pipeline": "digits", "device": "NVIDIA_H100_80GB_HBM3"},
        ),
        ("afterimage_use", {"stage": "processor", "pipeline": "digits", "device": "NVIDIA_H100_80GB_HBM3"}),
    ]


def test_every_metric_of_the_docs_has_a_mapping() -> None:
    documented = re.findall(r"^\| `afterimage\.(\w+)\.", (PROJECT / "docs/operations.md").read_text(), re.MULTILINE)

    assert len(documented) == 4
    assert {mapping["match"] for mapping in MAPPINGS} == {f"airflow.afterimage.{name}.*" for name in documented}


def test_prometheus_reads_the_exporter_and_metrics_are_off_where_nobody_listens() -> None:
    scraped = yaml.safe_load((PROJECT / "docker" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    environment = SERVICES["scheduler"]["environment"]

    assert [target for job in scraped for config in job["static_configs"] for target in config["targets"]] == [
        "statsd-exporter:9102"
    ]
    assert environment["AIRFLOW__METRICS__STATSD_HOST"] == "statsd-exporter"
    assert environment["AIRFLOW__METRICS__STATSD_PORT"] == "9125"
    assert example()["AIRFLOW_STATSD"] == "False"


@pytest.mark.parametrize("name", ["statsd-exporter", "prometheus"])
def test_the_files_are_where_the_services_look(name: str) -> None:
    (file,) = re.findall(r"/etc/afterimage/(\S+)", " ".join(SERVICES[name]["command"]))

    assert "./docker:/etc/afterimage:ro" in SERVICES[name]["volumes"]
    assert Path(PROJECT / "docker" / file).is_file()


@pytest.mark.parametrize("name", ["api-server", "scheduler", "gpu-worker"])
def test_whoever_sends_waits_for_the_exporter_where_there_is_one(name: str) -> None:
    assert SERVICES[name]["depends_on"]["statsd-exporter"] == {"condition": "service_healthy", "required": False}
