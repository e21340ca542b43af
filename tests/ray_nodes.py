"""A Ray cluster on loopback: nodes of one processor each, as processes that end with the test."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, free_port

STORE_BYTES = 80 * 2**20

# Who is lost is missed after two seconds; Ray's own default is fifteen.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """A head and other nodes."""

    def __init__(self, folder: Path, port: int) -> None:
        from ray.cluster_utils import Cluster

        arguments = {
            "num_cpus": 1,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        }
        self._cluster = Cluster()
        self._arguments = arguments
        self._client_port = free_port()
        self.nodes = [
            self._cluster.add_node(
                **arguments, temp_dir=str(folder), gcs_server_port=port, ray_client_server_port=self._client_port
            )
        ]

    @property
    def address(self) -> str:
        """Of the head, for AFTERIMAGE_RAY_ADDRESS."""
        return str(self._cluster.address)

    @property
    def client_address(self) -> str:
        """For a driver that is on no node."""
        return f"ray://127.0.0.1:{self._client_port}"

    def add(self) -> None:
        """One more node."""
        self.nodes.append(self._cluster.add_node(**self._arguments))

    def kill(self, number: int) -> None:
        """As when a machine loses its power: SIGKILL to all processes of a node."""
        raylet = psutil.Process(self.nodes[number].all_processes["raylet"][0].process.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            process.send_signal(signal.SIGKILL)

    def actors(self) -> list[psutil.Process]:
        """The processes that hold an actor of ours."""
        found = []
        for process in self.processes():
            try:
                if "ShardActor" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on the nodes."""
        found = []
        for node in self.nodes:
            for kind in node.all_processes.values():
                for one in kind:
                    try:
                        process = psutil.Process(one.process.pid)
                        found += [process, *process.children(recursive=True)]
                    except psutil.Error:
                        continue
        return found

    def close(self) -> None:
        """End every process."""
        everything = self.processes()
        self._cluster.shutdown()
        _, left = psutil.wait_procs(everything, timeout=5)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)


@contextmanager
def ray_nodes(count: int, home: Path, port: int | None = None) -> Iterator[Nodes]:
    """A cluster; `home` is where its nodes keep models, `port` is that of its address."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie below it
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **QUICK,
            "PYTHONPATH": str(ROOT),
            "AFTERIMAGE_HOME": str(home),
        }.items():
            patch.setenv(name, value)
        nodes = Nodes(folder, port or free_port())
        try:
            for _ in range(count - 1):
                nodes.add()
            patch.undo()
            yield nodes
        finally:
            nodes.close()
            shutil.rmtree(folder, ignore_errors=True)
