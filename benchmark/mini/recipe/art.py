"""Emoji art: SVG from the icon sets' npm packages, rendered to sprites and composed to 64 px images.

No art is committed. `npm pack` fetches the pinned packages into the build folder; resvg draws them.
Sprites are uint8 RGBA `(side, side, 4)`; images are uint8 RGB `(64, 64, 3)`.
"""

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import yaml
from PIL import Image

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent-emoji-high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "labels": "emojibase-data@17.0.0",
}
SIDE = 64
SPRITE_SIDE = 128
INK = "#2b2b33"  # colour of the one-colour set


@dataclass(frozen=True)
class Vocabulary:
    """The words of `vocabulary.yaml`: styles, backgrounds and objects by name."""

    styles: dict[str, dict[str, str]]
    backgrounds: dict[str, list[int]]
    objects: dict[str, dict[str, Any]]

    @classmethod
    @cache
    def load(cls) -> "Vocabulary":
        return cls(**yaml.safe_load((Path(__file__).parents[1] / "vocabulary.yaml").read_text()))


def fetch(folder: Path) -> None:
    """Download each package once into `folder/<name>.tgz` with npm."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        target = folder / f"{name}.tgz"
        if not target.exists():
            packed = subprocess.run(
                ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
            )
            (folder / packed.stdout.split()[-1]).rename(target)


@cache
def read_json(folder: Path, package: str, member: str) -> Any:
    """One JSON file of a fetched package."""
    with tarfile.open(folder / f"{package}.tgz") as tar:
        handle = tar.extractfile(f"package/{member}")
        if handle is None:
            raise FileNotFoundError(
                f"expected {member} in {package}.tgz, found no such file; delete it and fetch again"
            )
        return json.load(handle)


def sprite(folder: Path, icon_set: str, icon: str) -> np.ndarray:
    """Draw one icon: premultiplied float32 RGBA in [0, 1], `(SPRITE_SIDE, SPRITE_SIDE, 4)`."""
    icons = read_json(folder, icon_set, "icons.json")
    name = icons.get("aliases", {}).get(icon, {}).get("parent", icon)
    width, height = icons.get("width", 16), icons.get("height", 16)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="{INK}" '
        f'viewBox="0 0 {width} {height}">{icons["icons"][name]["body"]}</svg>'
    ).replace("currentColor", INK)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_SIDE, height=SPRITE_SIDE)
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


@dataclass(frozen=True)
class Pose:
    """Where a sprite lies: side and shift in pixels, rotation in degrees, mirrored or not."""

    side_px: float
    shift_px: tuple[float, float]
    degrees: float

    @classmethod
    def draw(cls, rng: np.random.Generator, wild: float = 1.0) -> "Pose":
        """A random pose; `wild` scales how far it strays from the centre."""
        return cls(
            side_px=float(52 + wild * rng.uniform(-5, 5)),
            shift_px=(float(wild * rng.uniform(-3.5, 3.5)), float(wild * rng.uniform(-3.5, 3.5))),
            degrees=float(wild * rng.uniform(-7, 7)),
        )


def compose(rgba: np.ndarray, background: tuple[float, ...], pose: Pose) -> np.ndarray:
    """Put a sprite on a plain background (RGB in 0..255): uint8 `(64, 64, 3)`."""
    scale = SPRITE_SIDE / pose.side_px
    angle = np.deg2rad(pose.degrees)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    centre_x, centre_y = SIDE / 2 + pose.shift_px[0], SIDE / 2 + pose.shift_px[1]
    half = SPRITE_SIDE / 2
    matrix = (cos, sin, half - cos * centre_x - sin * centre_y, -sin, cos, half + sin * centre_x - cos * centre_y)
    # Drawn at twice the size and shrunk: PIL's affine alone would alias the sprite's edges.
    doubled = tuple(m / 2 if i % 3 != 2 else m for i, m in enumerate(matrix))
    layers = [
        np.asarray(
            Image.fromarray(rgba[..., c])
            .transform((2 * SIDE, 2 * SIDE), Image.Transform.AFFINE, doubled, Image.Resampling.BILINEAR)
            .resize((SIDE, SIDE), Image.Resampling.BOX)
        )
        for c in range(4)
    ]
    colour, alpha = np.stack(layers[:3], -1), layers[3][..., None]
    image = colour + (1 - alpha) * np.asarray(background, dtype=np.float32) / 255
    return (image * 255).round().clip(0, 255).astype(np.uint8)
