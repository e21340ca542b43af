"""A run with engine = "ray" on a Ray cluster of one node, which is started for it and ended behind it.

python -m benchmarks.probes.on_ray MODEL-URI PHOTOGRAPHS DATABASE
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tasks.processors import cores

START_SECONDS = 60.0
PIPELINE = 'images = "{images}"\nmodel = "{model}"\nengine = "ray"\n'


def main(uri: str, folder: Path, database: Path) -> None:
    """The command line prints the counts, and the meter's clock stops at them."""
    scratch = Path(os.environ["RAY_TMPDIR"])
    pipelines = scratch / "pipelines.toml"
    pipelines.write_text("[bench]\n" + PIPELINE.format(images=folder, model=uri))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex)  # nobody else's work
    head = subprocess.Popen(_head(port), stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        asked = {"AFTERIMAGE_PIPELINES": str(pipelines), "AFTERIMAGE_RAY_ADDRESS": f"127.0.0.1:{port}"}
        command = [sys.executable, "-m", "tasks", "predict", "bench", "--database", f"sqlite:///{database}", "--json"]
        subprocess.run(command, env={**os.environ, **asked}, check=True)
    finally:
        head.terminate()
        head.wait()


def _head(port: int) -> list[str]:
    # As Ray Data's tuned form has it: all cores, 512 MiB of objects, no dashboard.
    options = {
        "--node-ip-address": "127.0.0.1",
        "--port": port,
        "--num-cpus": cores(),
        "--object-store-memory": 512 * 2**20,
    }
    given = [str(part) for option in options.items() for part in option]
    ray = str(Path(sys.executable).with_name("ray"))
    return [ray, "start", "--head", "--block", "--include-dashboard=false", "--disable-usage-stats", *given]


def _wait(port: int) -> None:
    """Until the cluster listens; a driver waits for its node itself."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
