"""What the figures depend on: the machine, the versions, the state of the code and the command."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.workplace import PROJECT, THEIRS, cores

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
_OURS = ("torch", "torchvision", "openvino", "pillow", "simplejpeg", "numba", "numpy", "sqlalchemy")
_THEIRS = ("torch", "torchvision", "openvino", "pillow", "numpy", "nncf", "ray", "daft", "spdl")


def describe() -> dict[str, Any]:
    """Plain values, for the JSON file and the head of the table."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([".venv/bin/python", "-m", "benchmarks", *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain")),
        "cpu": _cpu("model name"),
        "cores": cores(),
        "flags": [flag for flag in _FLAGS if flag in _cpu("flags").split()],
        "memory_gib": round(_memory_kib() / 2**20, 1),
        "load_before": [float(value) for value in Path("/proc/loadavg").read_text().split()[:3]],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ours": versions(_OURS),
        "theirs": _their_versions(),
    }


def headline(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    flags = ", ".join(machine["flags"]) or "none of the wide instructions"
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({flags}), {machine['memory_gib']} GiB, Python {machine['python']}, torch "
        f"{machine['ours']['torch']}, OpenVINO {machine['ours']['openvino']}; load before: {machine['load_before'][0]}"
    )


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Of packages in this environment; None where one is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _their_versions() -> dict[str, str | None]:
    if not Path(THEIRS).exists():  # What asks no peer needs none of them here.
        return {}
    code = f"import json; from benchmarks.machine import versions; print(json.dumps(versions({_THEIRS!r})))"
    answer = subprocess.run([THEIRS, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    found: dict[str, str | None] = json.loads(answer.stdout)
    return found


def _cpu(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return platform.machine()


def _memory_kib() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1])


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=PROJECT)
    return answer.stdout.strip()
