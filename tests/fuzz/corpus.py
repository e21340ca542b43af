"""Folders of odd files: the test images of Pillow's source distribution, and mutated files by a seed.

python -m tests.fuzz.corpus     (make corpus) gets the first below var/corpus/pillow
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from random import Random

from tests.conftest import ROOT, TEST_DATA
from tests.fuzz.mutating import mutated
from tests.fuzz.samples import samples

PILLOW = ROOT / "var" / "corpus" / "pillow"
_PHOTOGRAPHS = 20


def requirement(requirements: str) -> str:
    """Pillow's lines of requirements.txt: its version, and the hashes that pip checks."""
    found = re.search(r"^pillow==(?:.*\\\n)*.*\n", requirements, re.MULTILINE)
    assert found is not None, "requirements.txt pins no Pillow"
    return found[0]


def fetch_pillow(into: Path) -> int:
    """Unpack the images of the pinned source distribution into an empty folder; returns how many there are.

    pip asks for the metadata of what it downloads, for which it takes Pillow's build tools into an environment of its
    own; nothing is built.
    """
    wanted = requirement((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    pinned = wanted.partition("==")[2].split()[0]
    assert pinned == version("pillow"), (
        f"Pillow {version('pillow')} is installed and {pinned} is pinned: run make again"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pillow.txt").write_text(wanted, encoding="utf-8")
        options = ("--no-deps", "--no-binary", "pillow", "--require-hashes", "-r", "pillow.txt")
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options], cwd=folder, check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        return _unpack(archive, into)


def _unpack(archive: Path, into: Path) -> int:
    count = 0
    with tarfile.open(archive) as source:
        for member in source:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and parts[1:3] == ("Tests", "images"):
                member.name = str(PurePosixPath(*parts[3:]))
                source.extract(member, into, filter="data")
                count += 1
    return count


def write_mutated(folder: Path, count: int, seed: int) -> None:
    """`count` damaged files, of small files of every kind and of a few real photographs where those are present."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = samples()
    for path in sorted((TEST_DATA / "imagenet-sample").glob("*.JPEG"))[:_PHOTOGRAPHS]:
        kinds[f"photograph-{path.stem}"] = path.read_bytes()
    names, files = list(kinds), list(kinds.values())
    for number in range(count):
        place = number % len(names)
        random = Random(f"{seed} {number}")
        (folder / f"{number:05d}-{names[place]}").write_bytes(mutated(files[place], files, random))


def main() -> None:
    """Get Pillow's test images, unless they are there."""
    if PILLOW.is_dir():
        print(f"{PILLOW} is there already; remove it to get it anew.")
        return
    partial = PILLOW.with_name("pillow.partial")
    print(f"{fetch_pillow(partial):,} files of Pillow {version('pillow')} in {PILLOW}")
    partial.rename(PILLOW)


if __name__ == "__main__":
    main()
