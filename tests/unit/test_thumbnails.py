"""Small pictures: how large they are, what is in them, and where pages look for them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.inference import thumbnails
from tasks.inference.thumbnails import SIDE, encode
from tasks.settings import load_settings
from tasks.storage.thumbnails import MOST_BYTES, place_of
from tests.conftest import ROOT

GOOD = 'images = "images"\nmodel = "model"\n'


def opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


@pytest.mark.parametrize(
    ("rows", "columns", "size"),
    [
        (224, 224, (160, 160)),
        (518, 518, (160, 160)),
        (160, 160, (160, 160)),
        (161, 161, (160, 160)),
        (32, 32, (32, 32)),
        (1, 1, (1, 1)),
        (300, 150, (80, 160)),
        (3, 1_600, (160, 1)),
    ],
)
@pytest.mark.parametrize("has_simplejpeg", [True, False])
def test_a_thumbnail_is_scaled_down_and_never_up(
    rows: int, columns: int, size: tuple[int, int], has_simplejpeg: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "_HAS_SIMPLEJPEG", has_simplejpeg)
    small = opened(encode(np.zeros((rows, columns, 3), np.uint8)))
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", size)


def test_colours_stay_where_they_are() -> None:
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[:112, :, 0], pixels[112:, :, 2] = 200, 100  # red above blue
    small = np.asarray(opened(encode(pixels))).astype(int)
    assert np.abs(small[20, 80] - (200, 0, 0)).max() < 12
    assert np.abs(small[140, 80] - (0, 0, 100)).max() < 12


def test_even_noise_is_far_below_what_is_given_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    assert len(encode(noise)) < MOST_BYTES / 8
    assert SIDE == 160


def test_a_name_is_made_of_the_digest_alone() -> None:
    assert place_of("ab" + "c" * 62) == ("ab", "ab" + "c" * 62 + ".jpg")


def test_pages_follow_the_file_of_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within seconds, without a restart; a table that is wrong has none until it is mended."""
    monkeypatch.syspath_prepend(ROOT / "plugins")
    from afterimage_ui import caches
    from afterimage_ui import thumbnails as places

    file = tmp_path / "pipelines.toml"
    settings = load_settings(pipelines=file)
    monkeypatch.setattr(caches, "settings", lambda: settings)
    monkeypatch.setattr(places, "_known", places._Known({}))
    monkeypatch.setattr(places, "LOOK_AGAIN_SECONDS", 0.0)
    assert not places.thumbnails_of("a"), "there is no file yet"
    seen = []
    for number, text in enumerate(
        ("[a]\n", '[a]\nthumbnails = "small"\n', "[a]\nthumbnails = 3\n", "[a\n", '[a]\nthumbnails = "x"\n')
    ):
        file.write_text(text + GOOD)
        os.utime(file, ns=(number, number))
        seen.append(places.thumbnails_of("a"))
    assert seen == [False, True, False, False, True]
    monkeypatch.setattr(places, "LOOK_AGAIN_SECONDS", 60.0)
    file.unlink()
    assert places.thumbnails_of("a"), "for some seconds it is not looked at"
