"""JPEG through libjpeg-turbo and loops of our own: exact-1 is the reference pixel for pixel, fast-1 keeps its crop."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from tasks.errors import ImageError
from tasks.inference.decoding import jpeg, machine_code
from tasks.inference.decoding.geometry import crop_of
from tasks.inference.decoding.jpeg import JpegDecoder, orientation_of
from tasks.inference.decoding.policies import MAX_PIXELS, WORTH_COMPILING, Decoder, decode, decoder_version
from tasks.inference.decoding.resampling import KERNEL, Resampler
from tasks.models.bundle import Preprocessing
from tests.conftest import outer_environment

ImageFile.MAXBLOCK = 1 << 20  # noise, written progressively, is larger than Pillow expects

Pixels = npt.NDArray[np.uint8]
Interpolation = Literal["bilinear", "bicubic"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the loops are kept, so that they are compiled once for these tests."""
    return tmp_path_factory.mktemp("compiled")


def spec(
    resize: int = 256, crop: int = 224, interpolation: Interpolation = "bilinear", policy: str = "exact"
) -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    given: Any = {"decode": policy, "interpolation": interpolation}
    return Preprocessing(resize=resize, crop=crop, mean=half, std=half, **given)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def waves(width: int, height: int) -> Image.Image:
    """A smooth picture: what a shift by a pixel changes in it, and decoding at a half hardly does."""
    x, y = np.meshgrid(np.linspace(0, 6 * np.pi, width), np.linspace(0, 4 * np.pi, height))
    channels = [127 + 120 * np.sin(x), 127 + 120 * np.cos(y), 127 + 60 * np.sin(x + y)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 95, **options})
    return out.getvalue()


def directly(data: bytes, wanted: Preprocessing, compiled: Path) -> Pixels:
    """By libjpeg-turbo, and by nobody else."""
    out = np.empty((wanted.crop, wanted.crop, 3), np.uint8)
    decoder = JpegDecoder(wanted, compiled, shrink=wanted.decode == "fast-1")
    decoder.prepare()
    assert decoder.decode(data, MAX_PIXELS, out)
    return out


def by_policy(data: bytes, wanted: Preprocessing, compiled: Path) -> Pixels:
    """As a large shard decodes it when the loops are loaded."""
    out = np.empty((wanted.crop, wanted.crop, 3), np.uint8)
    loaded(wanted, compiled).decode(data, out)
    return out


def loaded(wanted: Preprocessing, compiled: Path) -> Decoder:
    decoder = Decoder(wanted, compiled, WORTH_COMPILING)
    assert decoder._jpeg is not None
    deadline = time.monotonic() + 60
    while not decoder._jpeg.is_ready and time.monotonic() < deadline:
        time.sleep(0.001)
    assert decoder._jpeg.is_ready
    return decoder


def apart(left: Pixels, right: Pixels) -> int:
    """The largest difference of two pictures, in levels."""
    return int(np.abs(left.astype(np.int16) - right.astype(np.int16)).max())


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.integers(1, 80),
    smaller=st.integers(0, 79),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
)
def test_every_size_is_as_in_the_reference(
    compiled: Path,
    width: int,
    height: int,
    resize: int,
    smaller: int,
    interpolation: Interpolation,
    subsampling: int,
    progressive: bool,
) -> None:
    data = encoded(noise(width, height), subsampling=subsampling, progressive=progressive)
    wanted = spec(resize, max(1, resize - smaller), interpolation)

    assert np.array_equal(by_policy(data, wanted, compiled), decode(data, wanted))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (224, 224), (1000, 37), (1023, 769), (60, 41)])
def test_the_crop_lies_where_it_does_in_the_reference(compiled: Path, size: tuple[int, int]) -> None:
    data, wanted = encoded(waves(*size)), spec()

    assert np.array_equal(directly(data, wanted, compiled), decode(data, wanted))


@pytest.mark.photographs
def test_photographs_are_as_in_the_reference(compiled: Path, photographs: Path) -> None:
    wanted = spec()
    for path in sorted(photographs.glob("*.JPEG"))[::4]:
        data = path.read_bytes()
        assert np.array_equal(directly(data, wanted, compiled), decode(data, wanted)), path.name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_as_in_the_reference(compiled: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data, wanted = encoded(noise(151, 94), exif=exif), spec(64, 48)

    assert orientation_of(data) == orientation
    assert np.array_equal(directly(data, wanted, compiled), decode(data, wanted))


def test_an_orientation_behind_padding_counts(compiled: Path) -> None:
    """A marker may be filled up with any number of 0xFF bytes before it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    plain, wanted = encoded(noise(151, 94), exif=exif), spec(64, 48)
    data = plain.replace(b"\xff\xe1", b"\xff\xff\xff\xe1", 1)

    assert data != plain
    assert orientation_of(data) == 6
    assert np.array_equal(directly(data, wanted, compiled), decode(data, wanted))


@pytest.mark.parametrize("odd", [b"\xff\xe1\x00\x00", b"\xff\xfe\x00\x01", b"junk", b"\xff\xd0"])
def test_an_orientation_behind_an_odd_segment_counts(compiled: Path, odd: bytes) -> None:
    """make fuzz found it (seed 2027, file 72,261): libjpeg-turbo and Pillow get over a length of 0, and so must the walk."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    plain, wanted = encoded(noise(151, 94), exif=exif), spec(64, 48)
    data = plain.replace(b"\xff\xe1", odd + b"\xff\xe1", 1)

    assert orientation_of(data) == 6
    assert np.array_equal(by_policy(data, wanted, compiled), decode(data, wanted))
    assert not np.array_equal(by_policy(data, wanted, compiled), decode(encoded(noise(151, 94)), wanted))


def test_an_orientation_in_xmp_counts_and_one_in_the_pixels_does_not(compiled: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"></rdf:RDF></x:xmpmeta>'
    data, wanted = encoded(noise(151, 94), xmp=xmp), spec(64, 48)

    assert orientation_of(data) == 6
    assert np.array_equal(directly(data, wanted, compiled), decode(data, wanted))
    assert orientation_of(encoded(noise(20, 20)) + b"Exif\x00\x00tiff:Orientation") == 1


def test_grey_pictures_have_three_equal_channels(compiled: Path) -> None:
    data, wanted = encoded(noise(100, 80).convert("L")), spec(64, 48)
    found = directly(data, wanted, compiled)

    assert np.array_equal(found, decode(data, wanted))
    assert np.array_equal(found[..., 0], found[..., 2])


def odd_files() -> dict[str, bytes]:
    whole = encoded(noise(200, 150))
    png = io.BytesIO()
    noise(40, 30).save(png, "PNG")
    return {
        "cmyk": encoded(noise(100, 80).convert("CMYK")),
        "png": png.getvalue(),
        "cut off": whole[: len(whole) // 2],
        "header only": whole[:40],
        "garbage inside": whole[:3000] + b"\xff\xd9\x00" * 50 + whole[3150:],
        "text": b"\xff\xd8\xff is how a JPEG begins",
        "empty": b"",
    }


def verdict(decoding: Callable[[], Pixels]) -> object:
    """The pixels, or the reason why there are none."""
    try:
        return decoding().tolist()
    except ImageError as error:
        return error.reason


@pytest.mark.parametrize("name", odd_files())
def test_what_is_odd_in_any_way_is_left_to_pillow(compiled: Path, name: str) -> None:
    data, wanted = odd_files()[name], spec(32, 24)
    out = np.empty((24, 24, 3), np.uint8)
    assert not JpegDecoder(wanted, compiled, shrink=False).decode(data, MAX_PIXELS, out)
    assert verdict(lambda: by_policy(data, wanted, compiled)) == verdict(lambda: decode(data, wanted))


def test_too_many_pixels_are_refused_before_they_are_decoded(compiled: Path) -> None:
    out = np.empty((24, 24, 3), np.uint8)
    decoder = JpegDecoder(spec(32, 24), compiled, shrink=False)

    assert not decoder.decode(encoded(noise(100, 80)), 100 * 80 - 1, out)
    assert decoder.decode(encoded(noise(100, 80)), 100 * 80, out)


@pytest.mark.parametrize(("size", "factor"), [((500, 375), 1), ((800, 600), 2), ((1281, 1025), 4), ((2500, 2100), 8)])
def test_fast_decodes_large_pictures_at_a_fraction_and_keeps_the_crop_in_place(
    compiled: Path, size: tuple[int, int], factor: int
) -> None:
    data, wanted = encoded(waves(*size)), spec(policy="fast")
    decoder = JpegDecoder(wanted, compiled, shrink=True)

    assert decoder._shrunk(min(size)) == factor
    height, width = -(-size[1] // factor), -(-size[0] // factor)
    assert decoder._read(data, *size, factor).shape == (height, width, 4)
    found, exact = directly(data, wanted, compiled), decode(data, wanted)
    # A crop that is off by one pixel of the result changes this picture by ten levels and more.
    assert np.abs(found.astype(float) - exact).mean() < 1.0
    assert apart(found, exact) <= (0 if factor == 1 else 6)


def test_threads_share_a_decoder(compiled: Path) -> None:
    wanted = spec(64, 48)
    decoder = loaded(wanted, compiled)
    files = [encoded(noise(90 + number, 200 - number, number)) for number in range(16)]

    def one(data: bytes) -> Pixels:
        out = np.empty((48, 48, 3), np.uint8)
        decoder.decode(data, out)
        return out

    alone = [one(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, files * 4))
    assert all(np.array_equal(found, alone[index % 16]) for index, found in enumerate(together))


def test_a_large_picture_does_not_keep_its_memory(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "KEPT_PIXELS", 100 * 80)
    decoder, out = JpegDecoder(spec(32, 24), compiled, shrink=False), np.empty((24, 24, 3), np.uint8)
    decoder.prepare()

    assert decoder.decode(encoded(noise(100, 80)), MAX_PIXELS, out)
    assert decoder.decode(encoded(noise(300, 200)), MAX_PIXELS, out)
    assert len(decoder._local.buffer) == 4 * 100 * 80


def test_the_kernel_is_compiled_once_on_a_machine(tmp_path: Path) -> None:
    """The second process finds it in the folder, and does without numba."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tasks.inference.decoding.resampling import KERNEL, Resampler\n"
        "resampler = Resampler('bilinear', Path(sys.argv[1]))\nprint(resampler.is_ready)\n"
        "resampler.prepare()\nprint('numba' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    runs = [
        subprocess.run(command, env=outer_environment(), capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert runs == [["False", "True"], ["True", "False"]]


def test_a_damaged_or_foreign_kernel_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    KERNEL.compiled(tmp_path)
    (file,) = tmp_path.glob("kernels-*/*.o")
    whole = file.read_bytes()
    machine_code._LOADED.clear()

    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert KERNEL.kept(tmp_path) is None
    assert f"{file} is damaged" in caplog.text
    file.write_bytes(whole)
    file.chmod(0o666)
    assert KERNEL.kept(tmp_path) is None
    file.chmod(0o600)
    assert KERNEL.kept(tmp_path) is not None


def test_a_kernel_that_cannot_be_compiled_leaves_everything_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_self: Resampler) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Resampler, "prepare", fail)
    data, wanted, out = encoded(noise(100, 80)), spec(64, 48), np.empty((48, 48, 3), np.uint8)
    decoder = Decoder(wanted, tmp_path, WORTH_COMPILING)
    deadline = time.monotonic() + 60
    while "no room" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.001)

    decoder.decode(data, out)
    assert np.array_equal(out, decode(data, wanted))


def test_policies_have_names_and_versions() -> None:
    assert (spec(policy="exact").decode, spec(policy="fast").decode) == ("exact-1", "fast-1")
    both = f"pillow-{version('pillow')} simplejpeg-{version('simplejpeg')}"
    assert [decoder_version(policy) for policy in ("exact-1", "fast-1")] == [f"exact-1 {both}", f"fast-1 {both}"]


def test_without_its_packages_pillow_gives_the_same_pixels(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, wanted = encoded(noise(100, 80)), spec(64, 48)
    before = by_policy(data, wanted, compiled)
    monkeypatch.setattr(jpeg, "find_spec", lambda _name: None)

    alone, out = Decoder(wanted, compiled, WORTH_COMPILING), np.empty_like(before)
    assert alone._jpeg is None
    alone.decode(data, out)
    assert np.array_equal(out, before)
    assert decoder_version("exact-1").endswith(" no-simplejpeg")


def test_the_geometry_of_odd_sizes_is_torchvisions() -> None:
    """Half to even, as round() does in torchvision's center_crop."""
    assert (crop_of(500, 375, 256, 224).size, crop_of(375, 500, 256, 224).size) == ((341, 256), (256, 341))
    assert (crop_of(500, 375, 256, 224).left, crop_of(500, 375, 256, 224).top) == (58, 16)
    assert crop_of(333, 251, 255, 224).top == round(31 / 2) == 16


def test_a_small_shard_compiles_nothing_and_a_large_one_is_not_held_up_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, wanted, out = encoded(noise(100, 80)), spec(64, 48), np.empty((48, 48, 3), np.uint8)
    may_compile, compile_now = threading.Event(), Resampler.prepare
    monkeypatch.setattr(Resampler, "prepare", lambda self: may_compile.wait(60) and compile_now(self))
    threads = threading.active_count()
    Decoder(wanted, tmp_path, WORTH_COMPILING - 1)
    assert threading.active_count() == threads
    decoder = Decoder(wanted, tmp_path, WORTH_COMPILING)
    assert threading.active_count() == threads + 1
    assert decoder._jpeg is not None

    decoder.decode(data, out)
    assert np.array_equal(out, decode(data, wanted))
    assert not decoder._jpeg.decode(data, MAX_PIXELS, out)
    may_compile.set()
    deadline = time.monotonic() + 60
    while not decoder._jpeg.decode(data, MAX_PIXELS, out) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert np.array_equal(out, decode(data, wanted))
    small = Decoder(wanted, tmp_path, 1)._jpeg
    assert small is not None
    assert small.decode(data, MAX_PIXELS, out)  # what a large shard compiled is there for all


def test_fast_pictures_never_wait_for_a_large_shard(compiled: Path) -> None:
    """Their pixels are others than Pillow's, so one decoder must give all of them."""
    decoder = Decoder(spec(policy="fast"), compiled, 1)
    assert decoder._jpeg is not None
    assert decoder._jpeg.is_ready
