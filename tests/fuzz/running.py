"""One pipeline run over a folder of files, in a process of its own, so that its end and its memory can be told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, outer_environment
from tests.pictures import write_small_bundle

# Unbounded failures: what is asked here is that each file ends somewhere.
CHILD = """
import json, sys, time
from pathlib import Path
from tests.runner import Runner

home, images, model = sys.argv[1:]
began = time.monotonic()
runner = Runner(Path(home), f"sqlite:///{home}/cache.db", images=images, model=model, include=["*"], max_failure_rate=1.0)
counts = runner.run()
seconds = time.monotonic() - began
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
failures = runner.rows("SELECT key, reason, message FROM v_failure")
print(json.dumps({"counts": counts, "seconds": seconds, "peak": int(peak) // 1024, "failures": failures}, default=str))
"""


@dataclass(frozen=True)
class Ended:
    """Counts of the run, seconds it took, its peak memory in MB, and {key: (reason, message)} of its quarantine."""

    counts: dict[str, Any]
    seconds: float
    megabytes: int
    failures: dict[str, tuple[str, str]]

    @property
    def reasons(self) -> dict[str, int]:
        """How many files are in the quarantine for what."""
        found = [reason for reason, _ in self.failures.values()]
        return {reason: found.count(reason) for reason in sorted(set(found))}

    def __str__(self) -> str:
        quarantined = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return (
            f"{self.counts['listed']:,} files: {self.counts['predicted']:,} predicted, {self.counts['reused']:,} reused, "
            f"{self.counts['failed']:,} quarantined ({quarantined}); {self.seconds:.1f} s, {self.megabytes:,} MB at most"
        )


def run_over(images: Path, home: Path, seconds: float) -> Ended:
    """Raises AssertionError where the process died or said nothing, and TimeoutExpired after `seconds`."""
    model = write_small_bundle(home / "model")
    command = [sys.executable, "-c", CHILD, str(home), str(images), str(model)]
    done = subprocess.run(
        command, cwd=ROOT, env=outer_environment(), capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"the run ended with {done.returncode}: {done.stderr[-4000:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    failures = {row["key"]: (row["reason"], row["message"]) for row in told["failures"]}
    return Ended(told["counts"], told["seconds"], told["peak"], failures)
