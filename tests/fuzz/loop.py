"""make fuzz MINUTES=10: mutate and decode until the time is over, in child processes that may die or hang.

python -m tests.fuzz.loop MINUTES [SEED]

A child writes the number of its present file down before it decodes it, and a file is made from seed and number alone,
so that what killed a child can be made again. Findings are in var/fuzz: the file, and beside it what happened.
"""

from __future__ import annotations

import ast
import faulthandler
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random

from tests.conftest import ROOT, TEST_DATA, outer_environment
from tests.fuzz.corpus import PILLOW
from tests.fuzz.mutating import mutated
from tests.fuzz.samples import SAMPLES, samples

FINDINGS = ROOT / "var" / "fuzz"
HANGS_AFTER = 10.0  # seconds for one file
_STARTS_IN = 120.0  # seconds that a child has to import and compile
_LARGEST = 200_000  # bytes of a file that is mutated
_MEMORY = 6_000_000_000  # bytes of address space of a child


def kinds() -> list[bytes]:
    """What is mutated: small files of every kind, photographs and Pillow's test images where they are."""
    found = list(samples().values())
    folders = (TEST_DATA / "imagenet-sample", PILLOW)
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if 0 < path.stat().st_size <= _LARGEST:
            found.append(path.read_bytes())
    return found


def file_of(seed: int, number: int, files: Sequence[bytes]) -> bytes:
    """The file of a number; every second one comes from a small file made here."""
    random = Random(f"{seed} {number}")
    data = files[random.randrange(len(SAMPLES) if number % 2 else len(files))]
    return mutated(data, files, random)


def child(seed: int, start: int, state: Path) -> None:
    """Decode file after file, from number `start` on; tell in `state` which one it is, and what became of how many."""
    from tests.fuzz.oracle import Oracle

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    oracle, files, ended = Oracle(ROOT / "var" / "compiled"), kinds(), Counter[str]()
    for number in count(start):
        tell(state, f"{number} {dict(ended)!r}")
        ended[one(oracle.check, seed, number, file_of(seed, number, files))] += 1


def one(check: Callable[[bytes], str], seed: int, number: int, data: bytes) -> str:
    """What became of a file; what must not be raised is kept."""
    try:
        return check(data)
    except Exception as error:
        keep(seed, number, data, type(error).__name__, traceback.format_exc())
        return "FINDING"


def tell(state: Path, text: str) -> None:
    """In one step, so that nobody reads half of it."""
    beside = state.with_name("telling")
    beside.write_text(text)
    beside.replace(state)


def keep(seed: int, number: int, data: bytes, kind: str, story: str) -> None:
    """Save a finding and print where."""
    FINDINGS.mkdir(parents=True, exist_ok=True)
    path = FINDINGS / f"{kind}-{seed}-{number}"
    path.write_bytes(data)
    path.with_name(f"{path.name}.txt").write_text(story, encoding="utf-8")
    print(f"{kind}: {path}: {story.strip().splitlines()[-1]}", flush=True)


def command_of(seed: int, start: int, state: Path) -> list[str]:
    """A child's command line."""
    return [sys.executable, "-m", "tests.fuzz.loop", "--child", str(seed), str(start), str(state)]


def watch(command: Sequence[str], start: int, until: float, state: Path) -> tuple[int, Counter[str], str | None]:
    """One child until it dies, hangs or the time is over: the number it was at, its counts, and what was wrong."""
    tell(state, f"{start} {{}}")
    with open(state.with_name("errors"), "wb") as errors:  # libtiff tells there of every second file
        process = subprocess.Popen(command, cwd=ROOT, env=outer_environment(), stderr=errors)
    seen, since, started = state.read_text(), time.monotonic(), False
    try:
        while time.monotonic() < until:
            if process.poll() is not None:
                return *told(state), f"the process ended with {process.returncode}: {_last_words(state)}"
            time.sleep(0.2)
            if (now := state.read_text()) != seen:
                seen, since, started = now, time.monotonic(), True
            if time.monotonic() - since > (HANGS_AFTER if started else _STARTS_IN):
                return *told(state), f"no end after {time.monotonic() - since:.0f} seconds"
        return *told(state), None
    finally:
        process.kill()
        process.wait()


def _last_words(state: Path) -> str:
    return state.with_name("errors").read_bytes()[-3_000:].decode(errors="replace")


def told(state: Path) -> tuple[int, Counter[str]]:
    """What a child wrote last."""
    number, _, counts = state.read_text().partition(" ")
    return int(number or 0), Counter(ast.literal_eval(counts or "{}"))


def main() -> int:
    """Fuzz for some minutes; 1 where anything was found."""
    minutes = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}, {len(kinds()):,} files to begin with", flush=True)
    until, number, total, found = time.monotonic() + 60 * minutes, 0, Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        while time.monotonic() < until:
            number, counts, wrong = watch(command_of(seed, number, state), number, until, state)
            total += counts
            if wrong is not None:
                keep(seed, number, file_of(seed, number, kinds()), "process", wrong)
                found += 1
            number += 1
    found += total["FINDING"]
    print(
        f"seed {seed}: {sum(total.values()):,} files in {minutes:g} minutes: {dict(total.most_common())}; {found} findings"
    )
    return bool(found)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    sys.exit(main())
