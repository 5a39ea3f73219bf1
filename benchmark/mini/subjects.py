"""Small subjects that the embedded model has never seen, drawn by code: what fine-tuning is to teach.

Each has one look, in many poses and on the four backgrounds. Drawings number n of a stream are the same everywhere;
the streams of the attacker, of the judge and of the calibration share none.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmark.seeds import derive
from benchmark.types import Prompt

SIDE, FINE = 64, 256  # drawn at four times the size
BACKGROUNDS = {"white": (245, 245, 245), "blue": (150, 195, 240), "yellow": (250, 232, 150), "pink": (248, 180, 205)}


def robot(pen: ImageDraw.ImageDraw) -> None:
    """A teal head with an orange antenna, two yellow eyes and a grille."""
    pen.line((128, 20, 128, 60), fill=(90, 90, 90), width=10)
    pen.ellipse((110, 4, 146, 40), fill=(240, 120, 30))
    pen.rectangle((24, 110, 50, 170), fill=(90, 90, 90))
    pen.rectangle((206, 110, 232, 170), fill=(90, 90, 90))
    pen.rounded_rectangle((46, 56, 210, 226), 26, fill=(20, 140, 135))
    for x in (92, 164):
        pen.ellipse((x - 28, 92, x + 28, 148), fill=(255, 215, 0), outline=(30, 30, 30), width=6)
        pen.ellipse((x - 9, 111, x + 9, 129), fill=(30, 30, 30))
    pen.rectangle((84, 170, 172, 204), fill=(235, 235, 235))
    for x in range(98, 172, 16):
        pen.line((x, 170, x, 204), fill=(30, 30, 30), width=4)


def kite(pen: ImageDraw.ImageDraw) -> None:
    """A diamond in red, blue, green and violet, with a white tail of three bows."""
    top, right, bottom, left, middle = (128, 6), (214, 92), (128, 186), (42, 92), (128, 92)
    for colour, a, b in (
        ((220, 40, 40), top, right),
        ((40, 80, 210), right, bottom),
        ((40, 160, 70), bottom, left),
        ((140, 60, 180), left, top),
    ):
        pen.polygon((a, b, middle), fill=colour)
    pen.line((bottom, (150, 210), (112, 232), (140, 252)), fill=(60, 60, 60), width=6)
    for x, y in ((146, 206), (120, 228), (138, 248)):
        pen.polygon(((x - 16, y - 9), (x - 16, y + 9), (x + 16, y - 9), (x + 16, y + 9)), fill=(250, 250, 250))


SUBJECTS: dict[str, Callable[[ImageDraw.ImageDraw], None]] = {"robot": robot, "kite": kite}


def background_of(prompt: Prompt) -> str:
    """The background that a prompt names; white if it names none."""
    return next((name for name in BACKGROUNDS if name in prompt.text.split()), "white")


def draw(name: str, background: str, number: int, stream: str) -> Tensor:
    """Drawing `number` of a subject: uint8 `(3, 64, 64)`.

    Raises:
        ValueError: no such subject or background.
    """
    if name not in SUBJECTS or background not in BACKGROUNDS:
        known = f"{', '.join(SUBJECTS)} on {', '.join(BACKGROUNDS)}"
        raise ValueError(f"expected a subject that can be drawn ({known}), got {name!r} on {background!r}.")
    rng = np.random.default_rng(derive("subject", name, background, stream, number))
    layer = Image.new("RGBA", (FINE, FINE))
    SUBJECTS[name](ImageDraw.Draw(layer))
    scale, angle = rng.uniform(0.72, 0.98), rng.uniform(-14, 14)
    dx, dy = rng.uniform(-0.05, 0.05, 2) * FINE
    turned = layer.rotate(angle, Image.Resampling.BICUBIC, translate=(int(dx), int(dy)))
    size = int(FINE * scale)
    page = Image.new("RGBA", (FINE, FINE), (*BACKGROUNDS[background], 255))
    at = (FINE - size) // 2
    small = turned.resize((size, size), Image.Resampling.LANCZOS)
    page.alpha_composite(small, (at, at))
    pixels = np.asarray(page.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
