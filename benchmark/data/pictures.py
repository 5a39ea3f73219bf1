"""Real images from the user's folders: looked at before a run, read when a task needs them."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmark.errors import DataError, clipped
from benchmark.given.files import contents

FAULTS = (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError)
BYTES, PIXELS = 256 << 20, 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # others are programs, or start one
AT_ONCE = 4  # images that are decoded side by side: each takes up to 0.25 GB
FINE = "I;16"  # Pillow's mode of 16 bits a pixel; its conversion to RGB would make nearly all of it white


def look(paths: Iterable[str]) -> list[str]:
    """The SHA-256 of each image file, all of them decoded, so that a broken one stops nobody after hours.

    Raises:
        DataError: one is missing, empty or no image.
    """
    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a smaller limit is ours
        return list(pool.map(look_at, paths))


def look_at(path: str) -> str:
    """The SHA-256 of one image file."""
    data = read(path)
    with opened(data, path) as image:
        try:
            image.draft("L", (16, 16))  # of a JPEG, all its bytes but few of its pixels
            image.load()
        except FAULTS as error:
            raise unreadable(path, error) from error
        return named(data, image)


def named(data: bytes, image: Image.Image) -> str:
    """The SHA-256 of an image file. One of 16 bits once was read as white: its name says that it no longer is."""
    return hashlib.sha256(data + FINE.encode() * image.mode.startswith(FINE)).hexdigest()


def squares(paths: Sequence[str], hashes: Sequence[str], side: int) -> np.ndarray:
    """Images as RGB, centre-cropped and resized: uint8 `(N, side, side, 3)`.

    Raises:
        DataError: one is unreadable, or is not the file that was looked at.
    """
    return np.stack([square(path, known, side) for path, known in zip(paths, hashes, strict=True)])


def square(path: str, known: str, side: int) -> np.ndarray:
    """One image: `(side, side, 3)`. It is turned as its EXIF says; what is transparent becomes white."""
    data = read(path)
    with opened(data, path) as image:
        if named(data, image) != known:
            raise DataError(
                f"expected the image that was there when the run was planned at {path}, got another: run again."
            )
        try:
            upright = eight_bits(ImageOps.exif_transpose(image))
            if upright.has_transparency_data:
                page = Image.new("RGBA", upright.size, "white")
                page.alpha_composite(upright.convert("RGBA"))
                upright = page
            least = min(upright.size)
            left, top = ((length - least) // 2 for length in upright.size)
            middle = upright.convert("RGB").crop((left, top, left + least, top + least))
            fitted = middle.resize((side, side), Image.Resampling.LANCZOS)
        except FAULTS as error:
            raise unreadable(path, error) from error
    return np.asarray(fitted)


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits a pixel as one of 8; any other as it is."""
    if not image.mode.startswith(FINE):
        return image
    return Image.fromarray(np.round(np.asarray(image, dtype=np.float32) / 257).astype(np.uint8))


def read(path: str) -> bytes:
    """The bytes of a file."""
    try:
        data = contents(Path(path), BYTES)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not data:
        raise DataError(f"expected an image at {path}, got an empty file: remove it or its row.")
    return data


def opened(data: bytes, path: str) -> Image.Image:
    """The image in the bytes of a file, not yet decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except FAULTS as error:
        raise unreadable(path, error) from error
    if image.width * image.height > PIXELS:
        image.close()
        got = f"{image.width} x {image.height}"
        raise DataError(f"expected an image of at most {PIXELS:,} pixels at {path}, got {got}: make it smaller.")
    if image.mode in ("I", "F"):
        raise DataError(f"expected 8 or 16 bits a pixel at {path}, got 32, whose range is not known: convert it.")
    return image


def unreadable(path: str, error: Exception) -> DataError:
    """What to say of a broken image."""
    why = " ".join(str(error).split())[:100]
    return DataError(f"expected an image at {clipped(path)}, got {type(error).__name__}: {why}: remove it or its row.")
