"""Metrics of a run, as a StatsD server hears them: Airflow's own settings decide where they go."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import write_pictures


class StatsD:
    """A StatsD server on loopback that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: dict[str, list[tuple[float, str]]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.port = self._socket.getsockname()[1]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                packet = self._socket.recv(65_536).decode()
            except TimeoutError:
                continue
            for line in packet.splitlines():
                found = re.fullmatch(r"([^:]+):([^|]+)\|(\w+).*", line)
                if found is not None:
                    self.heard.setdefault(found[1], []).append((float(found[2]), found[3]))


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsD]:
    server = StatsD()
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.port))
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics import stats_utils

    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
    yield server
    server.close()
    monkeypatch.undo()
    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)


def test_a_run_tells_statsd_of_images_stages_queues_and_use(dags: dict[str, Any], images: Path, statsd: StatsD) -> None:
    write_pictures(images, 12)
    (images / "damaged.png").write_bytes(b"no image")
    run = dags["predict_plain"].test(logical_date=None)
    assert str(run.state) == "success"
    for path in images.iterdir():
        path.unlink()

    heard = {name.removeprefix("airflow."): values for name, values in statsd.heard.items() if ".afterimage." in name}
    assert sum(value for value, _ in heard["afterimage.images.predicted"]) == 12
    assert sum(value for value, _ in heard["afterimage.images.failed"]) == 1
    for stage in ("read", "look_up", "decode", "forward", "commit"):
        assert heard[f"afterimage.stage_milliseconds.{stage}"][0][1] == "c"
        assert all(0 <= value <= 1 and kind == "g" for value, kind in heard[f"afterimage.use.{stage}"])
        assert all(0 <= value <= 1 for value, _ in heard[f"afterimage.queue_fill.{stage}"])
    assert heard["afterimage.use.processor"][0][0] > 0


def test_a_cascade_tells_of_each_of_its_forward_passes() -> None:
    from afterimage_metrics import counters, gauges

    from tasks.observation import Observation

    seconds = {"forward": 1.5, "forward_2": 0.25}
    observation = Observation("cpu", {"predicted": 9}, seconds, {"forward_2": 0.5}, {"forward_2": 1.0})
    assert dict(counters(observation))["stage_milliseconds.forward_2"] == 250
    assert {name for name, _ in gauges(observation)} == {"use.forward_2", "queue_fill.forward_2"}
