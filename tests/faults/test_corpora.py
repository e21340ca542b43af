"""Whole corpora of odd and damaged files through one real run each: every file ends somewhere, and the run lives on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults.record import record
from tests.fuzz.corpus import PILLOW, write_mutated
from tests.fuzz.running import Ended, run_over
from tests.pictures import picture

MUTATED = int(os.environ.get("AFTERIMAGE_TEST_MUTATED", "300"))
"""How many mutated files; `make corpus-check` takes 5,000."""

SEED = 13
MEGABYTES = 2_000
OTHERS = {"a.jpg": "PDF", "b.png": "EPS", "c.webp": "ICO", "d.tif": "JPEG2000", "e.gif": "AVIF"}
LYING = {"f.jpg": "PNG", "g.svg": "JPEG", "h.pdf": "GIF"}
LAST = "~the last key.png"


def check(ended: Ended, files: list[Path]) -> None:
    """Every file is predicted or in the quarantine for a reason of its own, and the whole picture at the end is predicted."""
    counts = ended.counts
    assert counts["listed"] == len(files)
    assert counts["predicted"] + counts["reused"] + counts["failed"] == len(files)
    assert counts["open"] == 0
    assert sum(ended.reasons.values()) == len(ended.failures) == counts["failed"]
    assert LAST not in ended.failures
    assert all(message.rstrip().endswith(".") for _, message in ended.failures.values())
    assert ended.megabytes < MEGABYTES


@pytest.mark.skipif(not PILLOW.is_dir(), reason="no test images of Pillow in var/corpus/pillow: make corpus")
def test_every_test_image_of_pillow_is_predicted_or_quarantined(tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(PILLOW, images)
    (images / LAST).write_bytes(picture(1))

    ended = run_over(images, tmp_path / "home", seconds=500)

    print(f"Pillow's test images: {ended}")
    check(ended, [path for path in images.rglob("*") if path.is_file()])
    assert ended.counts["listed"] > 1_000
    assert ended.counts["failed"] > 100
    record(
        "image",
        "Pillow's own test images, crash files among them",
        injected=ended.counts["listed"],
        answer=f"{ended.counts['predicted']:,} predicted, the others quarantined with a reason",
        lost=0,
        doubled=0,
    )


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, list[Path]]:
    """One run over mutated files, and files whose names lie; and the files."""
    folder = tmp_path_factory.mktemp("damaged")
    images = folder / "images"
    write_mutated(images, MUTATED, SEED)
    for number, (name, form) in enumerate((OTHERS | LYING).items()):
        (images / name).write_bytes(picture(number, form=form))
    (images / LAST).write_bytes(picture(100))
    ended = run_over(images, folder / "home", seconds=500)
    print(f"mutated files, seed {SEED}: {ended}")
    return ended, list(images.iterdir())


def test_every_mutated_file_is_predicted_or_quarantined(damaged: tuple[Ended, list[Path]]) -> None:
    ended, files = damaged

    check(ended, files)
    assert ended.counts["failed"] > MUTATED / 10
    record(
        "image",
        "files with flipped bits, cuts, splices and false lengths",
        injected=ended.counts["failed"],
        answer="quarantined with a reason; what decodes all the same is predicted",
        lost=0,
        doubled=0,
    )


def test_content_decides_and_not_the_name(damaged: tuple[Ended, list[Path]]) -> None:
    ended, _ = damaged

    assert {name: ended.failures[name][0] for name in OTHERS} == dict.fromkeys(OTHERS, "unsupported_format")
    assert not LYING.keys() & ended.failures.keys()
    record(
        "image",
        "PDF, EPS, icons, JPEG 2000 and AVIF named .jpg, .png and so on",
        injected=len(OTHERS),
        answer="quarantined as unsupported_format by their content; a PNG named .jpg is predicted",
        lost=0,
        doubled=0,
    )
