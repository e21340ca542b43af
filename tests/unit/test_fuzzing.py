"""The tools of make fuzz and make corpus: damage can be made again, and no crash, hang or wrong answer goes unseen."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ImageError
from tasks.inference.decoding import policies
from tasks.inference.decoding.jpeg import JpegDecoder
from tests.conftest import ROOT
from tests.fuzz import corpus, loop
from tests.fuzz.mutating import mutated, with_checksums
from tests.fuzz.oracle import COSTLY, Oracle
from tests.fuzz.samples import samples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

TELL = """
import os, signal, sys, time
from pathlib import Path
from tests.fuzz.loop import tell

state = Path(sys.argv[1])
tell(state, "40 {}")
time.sleep(1)
tell(state, "41 {'pixels': 3, 'truncated': 4}")
"""


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("compiled"))


def test_damage_can_be_made_again_from_its_seed() -> None:
    files = list(samples().values())
    first = [mutated(data, files, Random(f"1 {place}")) for place, data in enumerate(files)]

    assert first == [mutated(data, files, Random(f"1 {place}")) for place, data in enumerate(files)]
    assert first != [mutated(data, files, Random(f"2 {place}")) for place, data in enumerate(files)]
    assert sum(damaged != data for damaged, data in zip(first, files, strict=True)) > len(files) * 0.9
    assert all(first)


def test_checksums_are_made_right_again() -> None:
    png = samples()["png"]
    header = bytearray(png)
    header[19] += 1  # one column more

    assert with_checksums(png) == png
    Image.open(io.BytesIO(with_checksums(bytes(header)))).close()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(bytes(header)))


def test_every_sample_is_decoded_or_refused_for_its_kind(oracle: Oracle) -> None:
    ended = {name: oracle.check(data) for name, data in samples().items()}

    assert ended.pop("png-16") == ended.pop("tiff-16") == "unsupported_format"
    assert set(ended.values()) == {"pixels"}


def test_a_file_that_would_take_long_is_left_alone(oracle: Oracle) -> None:
    assert oracle.check(b"\xff\xd8\xff" + bytes(200_000)) == COSTLY


def test_pixels_that_are_not_pillows_are_found(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = JpegDecoder.decode

    def off_by_one(self: JpegDecoder, data: bytes, most: int, out: Any) -> bool:
        found = real(self, data, most, out)
        out[0, 0, 0] ^= 1
        return found

    monkeypatch.setattr(JpegDecoder, "decode", off_by_one)
    with pytest.raises(AssertionError, match="not Pillow's"):
        oracle.check(samples()["jpeg"])


def test_a_file_that_only_one_road_decodes_is_found(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes, spec: object) -> np.ndarray:
        raise ImageError("truncated", "No.")

    monkeypatch.setattr("tests.fuzz.oracle.decode", refuse)
    with pytest.raises(AssertionError, match="Pillow refuses"):
        oracle.check(samples()["jpeg"])


def test_an_exception_that_is_no_image_error_is_kept(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(data: bytes, spec: object) -> np.ndarray:
        raise KeyError("the third chunk")

    monkeypatch.setattr(loop, "FINDINGS", tmp_path)
    monkeypatch.setattr(policies, "decode", fail)

    assert loop.one(oracle.check, 7, 12, samples()["png"]) == "FINDING"
    assert (tmp_path / "KeyError-7-12").read_bytes() == samples()["png"]
    assert "the third chunk" in (tmp_path / "KeyError-7-12.txt").read_text()
    assert "KeyError-7-12" in capsys.readouterr().out


def test_a_child_that_dies_is_told_with_the_number_of_its_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TELL + "os.kill(os.getpid(), signal.SIGSEGV)", str(tmp_path / "state")]
    number, counts, wrong = loop.watch(command, 40, time.monotonic() + 60, tmp_path / "state")

    assert (number, dict(counts)) == (41, {"pixels": 3, "truncated": 4})
    assert wrong is not None
    assert "ended with -11" in wrong


def test_a_child_that_hangs_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HANGS_AFTER", 2.0)
    command = [sys.executable, "-c", TELL + "time.sleep(600)", str(tmp_path / "state")]
    number, _, wrong = loop.watch(command, 40, time.monotonic() + 60, tmp_path / "state")

    assert number == 41
    assert wrong is not None
    assert "no end" in wrong


def test_what_is_fetched_is_pinned_by_a_hash() -> None:
    wanted = corpus.requirement((ROOT / "requirements.txt").read_text())

    assert wanted.startswith("pillow==")
    assert "--hash=sha256:" in wanted
    assert wanted.count("==") == 1


def test_only_images_are_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "pillow.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        for name in ("pillow-1/Tests/images/a.png", "pillow-1/Tests/images/deep/b.png", "pillow-1/setup.py"):
            member = tarfile.TarInfo(name)
            member.size = 1
            out.addfile(member, io.BytesIO(b"x"))

    assert corpus._unpack(archive, tmp_path / "into") == 2
    assert (tmp_path / "into" / "deep" / "b.png").is_file()
