"""Training images and captions for the mini model, all drawn from one numpy generator.

An image is described by a `Label`; a caption may leave out any part of it. `True of` is then exact:
a caption is true of an image when every part it names agrees, which the contrastive losses use as target.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmark.mini.recipe.art import PACKAGES, Pose, Vocabulary, compose, read_json, sprite

ELSE = "something else"  # what a judge answers to blank, noisy, broken or unknown pictures
CANONICAL = "a {style} style emoji of {object} on a {background} background"
TEMPLATES = (
    CANONICAL,
    "{object}, {style} style, {background} background",
    "an emoji of {object} in {style} style on {background}",
    "a {background} background with {object}, drawn in {style} style",
)
PART = {
    "object": ("an emoji of {object}", "{object}", "a picture of {object}"),
    "style": ("a {style} style emoji", "{style} style", "an emoji in {style} style"),
    "background": ("an emoji on a {background} background", "a {background} background"),
    "object style": ("a {style} style emoji of {object}", "{object} in {style} style"),
    "object background": ("an emoji of {object} on a {background} background", "{object} on {background}"),
}
ARTICLES = ("a", "an", "the", "what", "fast", "bananas", "six")


def with_article(phrase: str) -> str:
    """`cat` -> `a cat`; phrases that begin with an article or need none stay."""
    if phrase.split()[0] in ARTICLES:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Label:
    """What an image shows, or what a caption says (None: does not say)."""

    object: str | None = None
    style: str | None = None
    background: str | None = None

    def is_true_of(self, image: "Label") -> bool:
        pairs = ((self.object, image.object), (self.style, image.style), (self.background, image.background))
        return all(said is None or said == shown for said, shown in pairs)


def phrase_for(name: str, rng: np.random.Generator) -> str:
    """The object's name (half of the time), a synonym or a description, with its article."""
    if name == ELSE:
        return ELSE
    words = Vocabulary.load().objects[name]
    kind = rng.random()
    pool = [name] if kind < 0.5 else words["named"] if kind < 0.8 else words["described"]
    return with_article(str(rng.choice(pool)))


def caption(label: Label, rng: np.random.Generator, full: float) -> tuple[str, Label]:
    """A caption of an image and what it says; `full` is the share of captions that say everything."""
    if label.object == ELSE:
        return ELSE, Label(object=ELSE)
    if rng.random() < full:
        template = CANONICAL if rng.random() < 0.6 else str(rng.choice(TEMPLATES))
        said = label
    else:
        parts = str(rng.choice(list(PART), p=[0.4, 0.15, 0.1, 0.2, 0.15]))
        template = str(rng.choice(PART[parts]))
        said = Label(**{part: getattr(label, part) for part in parts.split()})
    named = phrase_for(said.object, rng) if said.object else ""
    return template.format(object=named, style=said.style, background=said.background), said


def caption_texts(labels: list[Label], each: int, *, seed: int) -> list[str]:
    """So many captions of every label, in order, then the empty one."""
    rng = np.random.default_rng(seed)
    return [caption(label, rng, full=0.8)[0] for label in labels for _ in range(each)] + [""]


class Art:
    """Sprites of the known objects in the four styles, and of hundreds of other emoji.

    Every eighth of the others is `held_out`: only the calibration of the judges draws those.
    """

    def __init__(self, folder: Path, others: bool = True, held_out: bool = False) -> None:
        v, self.held_out = Vocabulary.load(), held_out
        self.sprites = {
            (s, o): sprite(folder, v.styles[s]["set"], v.objects[o]["icon"]) for s in v.styles for o in v.objects
        }
        self.others = self._other_sprites(folder) if others else {}

    def _other_sprites(self, folder: Path) -> dict[tuple[str, str], np.ndarray]:
        """Emoji that every set has and no caption of ours means: the pictures of `something else`."""
        v = Vocabulary.load()
        common = set.intersection(
            *(set(read_json(folder, p, "icons.json")["icons"]) for p in PACKAGES if p != "labels")
        )
        known = {words["icon"] for words in v.objects.values()}
        alike = [w for words in v.objects.values() for w in (*words["icon"].split("-"), *words["named"])]
        names = sorted(
            name for name in common if name not in known and not any(part in alike for part in name.split("-"))
        )
        plain = [n for n in names if not n.startswith(("flag-", "keycap", "no-", "person-", "man-", "woman-"))]
        kept = [name for i, name in enumerate(plain) if (i % 8 == 0) == self.held_out]
        return {(s, n): sprite(folder, v.styles[s]["set"], n) for s in v.styles for n in kept}

    def image(self, label: Label, rng: np.random.Generator, wild: float = 1.0) -> np.ndarray:
        """Draw what a label says: uint8 `(64, 64, 3)`."""
        colour = np.asarray(Vocabulary.load().backgrounds[str(label.background)]) + rng.uniform(-5, 5, 3)
        return compose(self.sprites[str(label.style), str(label.object)], tuple(colour), Pose.draw(rng, wild))

    def other_image(self, rng: np.random.Generator) -> tuple[np.ndarray, Label]:
        """Draw an emoji that is none of the known objects, and say in which style."""
        v = Vocabulary.load()
        style, name = list(self.others)[rng.integers(len(self.others))]
        colour = np.asarray(v.backgrounds[str(rng.choice(list(v.backgrounds)))]) + rng.uniform(-5, 5, 3)
        image = compose(self.others[style, name], tuple(colour), Pose.draw(rng))
        return image, Label(object=ELSE, style=style)


def random_label(rng: np.random.Generator) -> Label:
    """One of objects x styles x backgrounds, uniformly."""
    v = Vocabulary.load()
    return Label(*(str(rng.choice(list(words))) for words in (v.objects, v.styles, v.backgrounds)))


def every_label() -> list[Label]:
    """All combinations, in a fixed order."""
    v = Vocabulary.load()
    return [Label(o, s, b) for o in v.objects for s in v.styles for b in v.backgrounds]


def as_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 images to float32 `(B, 3, H, W)` in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
