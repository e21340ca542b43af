"""Folders of photographs, as many as wanted, made from the real ones.

A copy differs from its original in the bytes after the end of the picture: another digest, so that nothing can be reused, and the
same pixels. All contestants read the same files, from the page cache.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

from benchmarks.workplace import Workplace

LARGE = (4000, 3000)


def originals(place: Workplace) -> list[Path]:
    """The real photographs, in order. Raises SystemExit where there are none."""
    found = sorted(place.photographs.glob("*.JPEG"))
    if not found:
        raise SystemExit(
            f"No photographs in {place.photographs}. Point AFTERIMAGE_TEST_DATA at a folder that holds imagenet-sample/ "
            "(JPEG files and labels.csv) and squeezenet1_0.safetensors."
        )
    return found


def labels(place: Workplace) -> dict[str, int]:
    """{key: true class index} of the real photographs."""
    with open(place.photographs / "labels.csv", newline="") as file:
        return {row["key"]: int(row["label"]) for row in csv.DictReader(file)}


def real(place: Workplace) -> Path:
    """The real photographs alone, for the gate; our storage refuses links that lead out of a folder."""
    return _once(place, "real", lambda: ((path.name, path.read_bytes()) for path in originals(place)))


def calibration(place: Workplace) -> Path:
    """Every second photograph, for quantisation; agreement in int8 is reported on the others."""
    return _once(place, "calibration", lambda: ((path.name, path.read_bytes()) for path in originals(place)[::2]))


def held_out(place: Workplace) -> set[str]:
    """Keys of the photographs that quantisation does not see."""
    return {path.name for path in originals(place)[1::2]}


def many(place: Workplace, count: int) -> Path:
    """`count` photographs of which no two have the same digest."""
    return _once(place, f"many-{count}", lambda: _copies(place, count))


def large(place: Workplace, count: int) -> Path:
    """`count` photographs of twelve megapixels, enlarged from the real ones."""
    return _once(place, f"large-{count}", lambda: _enlarged(place, count))


def _copies(place: Workplace, count: int) -> Iterator[tuple[str, bytes]]:
    contents = [path.read_bytes() for path in originals(place)]
    for number, content in enumerate(islice(cycle(contents), count)):
        yield f"{number:06d}.jpg", content + number.to_bytes(8, "big")


def _enlarged(place: Workplace, count: int) -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    for number, path in enumerate(islice(cycle(originals(place)), count)):
        out = io.BytesIO()
        Image.open(path).convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        yield f"{number:06d}.jpg", out.getvalue() + number.to_bytes(8, "big")


def _once(place: Workplace, name: str, files: Callable[[], Iterator[tuple[str, bytes]]]) -> Path:
    folder = place.folder("photographs") / name
    if not folder.exists():
        scratch = folder.with_name(f"{name}.scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for key, content in files():
            (scratch / key).write_bytes(content)
        scratch.rename(folder)
    return folder
