"""Where the crop lies: torchvision's Resize(resize) and CenterCrop(crop) as numbers.

Half a pixel beside it changes pixels by up to 100 levels, so every decoder takes its numbers from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """A picture of `width` x `height` pixels is resized to `size`, and the crop begins at (`left`, `top`) of that."""

    width: int
    height: int
    crop: int
    size: tuple[int, int]
    left: int
    top: int

    @property
    def rows_first(self) -> bool:
        """Whether Pillow goes along the rows first. From version 13 on it begins with the columns of tall pictures,
        where the height loses more than twice as many pixels as the width; between the passes it rounds.
        """
        lost = self.height - self.size[1]
        return lost <= 0 or lost <= 2 * (self.width - self.size[0])

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the picture for one pixel of the crop, along x and y."""
        return self.width / self.size[0], self.height / self.size[1]


def crop_of(width: int, height: int, resize: int, crop: int) -> Geometry:
    """Resize the shorter side to `resize`, then take the centred square of `crop` pixels, rounding as torchvision does."""
    short, long = min(width, height), max(width, height)
    stretched = int(resize * long / short)
    size = (resize, stretched) if width <= height else (stretched, resize)
    left, top = round((size[0] - crop) / 2.0), round((size[1] - crop) / 2.0)
    return Geometry(width, height, crop, size, left, top)
