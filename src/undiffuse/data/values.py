"""Values of pixels: numbers of any kind become bytes, and data that would be black are noticed.

Data sets of the world hold bytes from 0 to 255, bytes that are 0 or 1, floats from 0 to 1 or from
-1 to 1, and 16-bit numbers. Where values are changed, a note says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = lazy("numpy")

DARK = 16
"""Images whose brightest pixel is at most this, of 255, look black."""


@dataclass(frozen=True)
class Scale:
    """How values become bytes: byte = factor * (value + shift). note: what was changed, or None."""

    shift: float = 0.0
    factor: float = 1.0
    note: str | None = None

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """The pixels as uint8; any shape."""
        if (self.shift, self.factor) != (0, 1):
            pixels = (pixels + self.shift) * self.factor
        return np.rint(pixels).astype(np.uint8)


def scale_of(low: float, high: float, source: object, *, floats: bool) -> Scale:
    """The scale of values from `low` to `high`, the smallest and the largest of a data set.

    Values from 0 to 255 stay. Floats from 0 to 1, or from -1 to 1, are stretched to 0 to 255.
    source: where the values are from. Raises UserError for other values."""
    if floats and 0 <= low <= high <= 1:
        return Scale(0.0, 255.0, f"{source}: the values 0 to 1 are read as 0 to 255")
    if floats and -1 <= low <= high <= 1:
        return Scale(1.0, 127.5, f"{source}: the values -1 to 1 are read as 0 to 255")
    if 0 <= low <= high <= 255:
        return Scale()
    raise UserError(
        f"{source} has values from {low:g} to {high:g}; images need 0 to 255, or floats from "
        "0 to 1 or from -1 to 1"
    )


def as_bytes(pixels: NDArray[Any], source: object) -> tuple[NDArray[np.uint8], str | None]:
    """(the pixels as uint8; a note where they were changed).

    source: where the pixels are from. Raises UserError for values that `scale_of` refuses."""
    if pixels.dtype == np.uint8:
        return pixels, None
    if pixels.dtype.kind not in "biuf":
        raise UserError(f"{source} has values of type {pixels.dtype}; images need numbers")
    floats = pixels.dtype.kind == "f"
    scale = scale_of(float(pixels.min()), float(pixels.max()), source, floats=floats)
    return scale(pixels), scale.note


def stretch(brightest: int, source: object) -> tuple[int, str | None]:
    """(the factor by which bytes are multiplied; a note where it is not 1).

    brightest: the largest value of all images. Images of 0 and 1 only are read as black and white.
    source: where they are from. Raises UserError for images that are black, or look black."""
    if brightest == 1:
        return 255, f"{source}: its pixels are 0 or 1, which are read as black and white"
    if brightest == 0:
        raise UserError(f"{source}: all its images are black; check how they were made")
    if brightest <= DARK:
        raise UserError(
            f"{source}: no pixel is brighter than {brightest} of 255, so all images look black; "
            "scale their values to 0 to 255 first"
        )
    return 1, None


def deep_enough(brightest: int, source: object) -> None:
    """Raises UserError where 16-bit pictures use the lowest sixteenth of their values only.

    brightest: the largest 16-bit value of all pictures. source: where they are from."""
    if brightest < 2**12:
        raise UserError(
            f"{source}: no pixel of its 16-bit pictures is brighter than {brightest} of 65,535, so "
            "they look black; scale their values to 0 to 65,535 first (12-bit values: times 16)"
        )
