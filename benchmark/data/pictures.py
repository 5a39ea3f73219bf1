"""Real images from the user's folders: looked at before a run, read when a task needs them."""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmark.errors import DataError

FAULTS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def look(paths: Iterable[str]) -> list[str]:
    """The SHA-256 of each image file, all of them decoded, so that a broken one stops nobody after hours.

    Raises:
        DataError: one is missing, empty or no image.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
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
    return hashlib.sha256(data).hexdigest()


def squares(paths: Sequence[str], hashes: Sequence[str], side: int) -> np.ndarray:
    """Images as RGB, centre-cropped and resized: uint8 `(N, side, side, 3)`.

    Raises:
        DataError: one is unreadable, or is not the file that was looked at.
    """
    return np.stack([square(path, known, side) for path, known in zip(paths, hashes, strict=True)])


def square(path: str, known: str, side: int) -> np.ndarray:
    """One image: `(side, side, 3)`. It is turned as its EXIF says; what is transparent becomes white."""
    data = read(path)
    if hashlib.sha256(data).hexdigest() != known:
        raise DataError(
            f"expected the image that was there when the run was planned at {path}, got another: run again."
        )
    with opened(data, path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
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


def read(path: str) -> bytes:
    """The bytes of a file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not data:
        raise DataError(f"expected an image at {path}, got an empty file: remove it or its row.")
    return data


def opened(data: bytes, path: str) -> Image.Image:
    """The image in the bytes of a file, not yet decoded."""
    try:
        return Image.open(io.BytesIO(data))
    except FAULTS as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> DataError:
    """What to say of a broken image."""
    why = " ".join(str(error).split())[:100]
    return DataError(f"expected an image at {path}, got {type(error).__name__}: {why}: remove it or its row.")
