"""The nouns of the project. A leaf: it imports nothing of ours, and torch only for type checkers.

Legend of shapes, used in every docstring: B batch, C channels, H W pixels, h w latents, L tokens, D embedding,
N images, K prompts. Images cross module borders as float32 `(B, 3, H, W)` in [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["concept", "retained", "cross", "safe", "attacker", "defender", "prior", "benign"]
Scenario = Literal["relearn", "personalize"]
EMBEDDED = ("mini", "mini-flow")  # the names of the models that are in the package
Precision = Literal["float32", "bfloat16", "float16"]
Solver = Literal["ddim", "pndm", "lms", "euler", "dpmpp"]  # of images that are drawn
Requirement = Literal["words", "readers", "schedule", "u-old", "joint", "apart", "null"]
"""What a method may need that not every family of models has.

words     texts given as word vectors, for words that are searched for or learned
readers   a text encoder that a delta may change
schedule  a noise schedule
u-old     ESD's old scope of that name
joint     attention in which text and image attend together, with projections of the text's own
apart     attention to the text alone, whose maps can be read
null      guidance away from a second text
"""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, what a judge should see in its images (`label`, if anything), and what it is for.

    A prompt that an attack has reworded keeps the original text as its `source`, and with it the seeds of its images.
    A row of a published set may have the `seed` of its first image, and a `guidance` of its own.
    """

    text: str
    split: Split
    label: str | None = None
    source: str | None = None
    seed: int | None = None
    guidance: float | None = None

    @property
    def id(self) -> str:
        """Twelve hex digits of the original text's hash: the same prompt has the same image seeds everywhere.

        A seed and a guidance of its own enter the hash: a set may ask for one text with many seeds.
        """
        own = [f"{name}={value}" for name, value in self.own.items()]
        return hashlib.sha256("\n".join([self.source or self.text, *own]).encode()).hexdigest()[:12]

    @property
    def own(self) -> dict[str, int | float]:
        """The seed and the guidance, if it has them."""
        both = {"seed": self.seed, "guidance": self.guidance}
        return {name: value for name, value in both.items() if value is not None}

    def reworded(self, text: str) -> Prompt:
        """This prompt in other words."""
        return self if text == self.text else replace(self, text=text, source=self.source or self.text)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A real image of the user's: where it is, the SHA-256 of its file, its caption, and what it is for."""

    path: str
    sha256: str
    caption: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What must not be drawn: the content of a concept card.

    Attributes:
        name: its key, and its label among `labels`.
        phrase: the words a defense erases.
        wordings: other ways to ask for it that a defender may erase too; no evaluation prompt is among them.
        paraphrases: synonyms and descriptions of `phrase` that an attacker may try.
        drawn: name of the code-drawn subject that the attack teaches, for `personalize`; empty for what the base knows.
        subject: its class in one word, as DreamBooth's "sks dog" needs it; empty where the phrase says nothing else.
        kind: object, style or nsfw.
        scenario: relearn (the base knows it) or personalize (the attack teaches it).
        prompts: all prompts by split; the splits share no text.
        pictures: real images for training, or to measure distances to.
        labels: what a zero-shot judge chooses from, label to description; `ELSE` is the way out.
        cross_labels: the same of the other domain, for prompts of the split `cross`: styles for an object, objects
            for a style (UnlearnCanvas' CRA). Such prompts may be those of the split `retained` again.
        judges: who judges, by place (`primary`, `second`), where a metric names none; see `metrics.judges`.
        classes: for judges that are classifiers: the classes, by name or number, that count as a label.
        left_out: for people: what of its tables is no prompt, a line for each table.
        members: of concepts that are erased together, each of them; `phrase` then lists their phrases.
        together: of one of those, the names of all.
    """

    name: str
    phrase: str
    kind: Literal["object", "style", "nsfw"]
    scenario: Scenario = "relearn"
    prompts: tuple[Prompt, ...]
    labels: Mapping[str, str]
    cross_labels: Mapping[str, str] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    wordings: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    subject: str = ""
    drawn: str = ""
    left_out: tuple[str, ...] = ()
    members: tuple[Concept, ...] = ()
    together: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """How people know it: `cigarette`, or `cigarette (with bomb, knife)`."""
        others = [name for name in self.together if name != self.name]
        return f"{self.name} (with {', '.join(others)})" if others else self.name

    @property
    def each(self) -> tuple[Concept, ...]:
        """The concepts that are erased together, or it alone."""
        return self.members or (self,)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The words that a defense erases, one text for each concept."""
        return tuple(concept.phrase for concept in self.each)

    def of(self, split: Split) -> tuple[Prompt, ...]:
        """The prompts of one split, in the card's order."""
        return tuple(prompt for prompt in self.prompts if prompt.split == split)

    def judged_on(self, split: Split) -> Concept:
        """What a judge of a split's images reads: on `cross` the labels are those of the other domain."""
        return replace(self, labels=self.cross_labels) if split == "cross" else self

    def pictured(self, split: Split) -> tuple[Picture, ...]:
        """The real images of one split, in their table's order."""
        return tuple(picture for picture in self.pictures if picture.split == split)


ELSE = "something else"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack has spent, as the runner counted it. `steps` is the axis of every curve."""

    steps: int
    unet_forward: int = 0
    unet_backward: int = 0
    images: int = 0
    judge_calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The difference between a model and its base.

    Attributes:
        dense: float32 differences by parameter name, `unet.…`, `vae.…`, `text_encoder.…` or `text_encoder_2.…`.
        low_rank: adapters by module name: `down (r, in)` and `up (out, r)`, applied as `up @ down` (scale folded in).
    """

    dense: Mapping[str, Tensor] = field(default_factory=dict)
    low_rank: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The parameters that it changes."""
        return {*self.dense, *(f"{name}.weight" for name in self.low_rank)}

    @property
    def is_zero(self) -> bool:
        """True when applying it changes nothing."""
        no_dense = all(not bool(t.any()) for t in self.dense.values())
        return no_dense and all(not (bool(down.any()) and bool(up.any())) for down, up in self.low_rank.values())


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What an attack has after `steps` steps: changed weights, learned words, found prompts.

    Attributes:
        delta: change of the attacked model's weights.
        tokens: learned words, each a vector `(D,)` of the text encoder's token table, of both side by side for two.
        prompts: found texts. Evaluation prompt i is replaced by number i modulo their count, where `PROMPT` stands
            for its own words; an empty one is not drawn; none leaves the prompts as they are.
        search: what tells whether a search converged, by name, a number for each found text: `loss_before` and
            `loss_after`, by which it was chosen, and `largest_weight` of a relaxed one-hot.
    """

    steps: int
    delta: Delta = field(default_factory=Delta)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    search: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


PROMPT = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Captioned images: uint8 `(N, 3, H, W)` and N captions. One split of the data a method may see."""

    images: Tensor
    captions: tuple[str, ...]


class Report(Protocol):
    """How a method tells its progress; the runner turns it into a bar, a loss curve and counters."""

    def __call__(self, *, step: int, total: int, loss: float) -> None:
        """Step `step` of `total` is done; `loss` is NaN where there is none."""
