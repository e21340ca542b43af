"""Damage, by a seed: the same seed and the same files give the same damaged file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = 96  # bytes at the beginning, where sizes and lengths stand
_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Change = Callable[[bytearray, Sequence[bytes], Random], bytearray]


def mutated(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """One to four changes; half of the PNG files get right checksums again, so that the damage comes further in."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        found = random.choice(_CHANGES)(found, others, random) or bytearray(b"\0")
    if found.startswith(_PNG) and random.random() < 0.5:
        return with_checksums(bytes(found))
    return bytes(found)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold."""
    out, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        out.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(out) + data[at:]


def _place(data: bytearray, random: Random) -> int:
    """Anywhere, and as often within the header."""
    return random.randrange(min(len(data), _HEADER) if random.random() < 0.5 else len(data))


def _flip_bits(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    for _ in range(random.choice((1, 1, 2, 8, 32))):
        data[_place(data, random)] ^= 1 << random.randrange(8)
    return data


def _set_bytes(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    at = _place(data, random)
    end = min(len(data), at + random.choice((1, 2, 4, 16)))
    data[at:end] = random.randbytes(end - at)
    return data


def _set_number(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    """What may be a length, a size, a count or an offset becomes another one."""
    at, width = _place(data, random), random.choice((1, 2, 4))
    number = random.choice((*_NUMBERS, len(data), random.getrandbits(32))) & (1 << 8 * width) - 1
    data[at : at + width] = number.to_bytes(width, random.choice(("big", "little")))
    return data


def _cut_off(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    return data[: random.randrange(1, len(data) + 1)]


def _cut_out(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    at = _place(data, random)
    del data[at : at + random.choice((1, 2, 4, 64, 512))]
    return data


def _splice(data: bytearray, others: Sequence[bytes], random: Random) -> bytearray:
    """The beginning of one file and the end of another."""
    other = random.choice(others)
    return data[: random.randrange(1, len(data) + 1)] + other[random.randrange(len(other)) :]


def _double(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    """A piece stands there twice, or many times."""
    at = _place(data, random)
    piece = data[at : at + random.choice((1, 4, 12, 64, 1024))]
    data[at:at] = piece * random.choice((1, 1, 2, 40))
    return data


def _move(data: bytearray, _: Sequence[bytes], random: Random) -> bytearray:
    """A piece stands at another place."""
    at, length = _place(data, random), random.choice((4, 12, 64, 512))
    piece = data[at : at + length]
    del data[at : at + length]
    to = random.randrange(len(data) + 1)
    data[to:to] = piece
    return data


_CHANGES: tuple[Change, ...] = (
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _set_number,
    _set_number,
    _set_number,
    _cut_off,
    _cut_out,
    _splice,
    _double,
    _move,
)
