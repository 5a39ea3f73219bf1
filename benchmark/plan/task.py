"""A task and its key: what is in the key decides what is computed again.

In the key: schema, kind, plug-in, its declared version, its fields, prompts, concept labels, seed, precision, the
base's weights, the parents' keys. Not in it: paths, device, batch size, worker count, time, names of cells.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Literal, TypeVar

from benchmark.types import Concept, Picture, Precision, Prompt

SCHEMA = 1
GUIDANCE = "guarded_guidance"  # field of a search on a guarded model: the guidance with which it is drawn
Made = TypeVar("Made")
Kind = Literal["defend", "attack", "generate", "embed", "score"]


class Once:
    """What is made of things that many tasks share (fields, prompts, a card), made once for each group of them.

    Things are known by their identity, and kept, so that no other can be taken for one.
    """

    def __init__(self, most: int = 100_000) -> None:
        self.most, self.made = most, dict[tuple[Hashable, ...], tuple[tuple[object, ...], Any]]()

    def of(self, things: tuple[object, ...], names: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        """What `make` gives for these things and names; it is called for new ones only."""
        at = (*map(id, things), *names)
        found = self.made.get(at)
        if found is None:
            if len(self.made) >= self.most:
                self.made.clear()
            found = self.made[at] = (things, make())
        value: Made = found[1]
        return value


FRAMES = Once()
NOTHING: Mapping[str, Any] = {}


def nothing() -> Mapping[str, Any]:
    """No fields, no parents: one mapping for all tasks."""
    return NOTHING


def canonical(value: Any) -> str:
    """JSON with sorted names, without spaces, in ASCII: equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the keys of many tasks have in common."""

    fields: Mapping[str, Any]
    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One unit of work.

    Attributes:
        kind: the stage that runs it.
        plugin: the plug-in's name; `sampler` for generate.
        fields: the plug-in's fields, or the sampling settings; JSON values only.
        base: hash of the base's weights.
        concept: for tasks whose result depends on the concept card.
        prompts: for generate and score.
        parents: role (`defense`, `attack`, `concept`, `safe`, `benign`, `images`, `reference`) to the parent's key.
        places: fields that are paths on this machine, for `score` and imported changes; not in the key, whose fields
            hold what is there.
        label: how people see it; not in the key.
        passes: samples through the U-Net, a backward pass counted as two; not in the key.
        pictures: for `folder`: where its images are; not in the key, whose fields hold their hash.
        is_private: an NSFW suite's images, weights or prompts, which are not kept once scored; not in the key.
        is_sexual: of a suite of a sexual concept: each text that a model reads for it passes the strict age filter, and
            its marker has no text in clear; not in the key.
    """

    kind: Kind
    plugin: str
    version: int
    fields: Mapping[str, Any] = field(default_factory=nothing)
    base: str
    concept: Concept | None = None
    prompts: tuple[Prompt, ...] = ()
    seed: int = 0
    precision: Precision = "float32"
    parents: Mapping[str, str] = field(default_factory=nothing)
    places: Mapping[str, str] = field(default_factory=nothing)
    label: str = ""
    passes: int = 0
    pictures: tuple[Picture, ...] = ()
    is_private: bool = False
    is_sexual: bool = False
    _key: str = field(default="", init=False, repr=False, compare=False)

    @property
    def required(self) -> dict[str, str]:
        """The parents that it cannot do without: of a tuned attack's trials, some may fail."""
        return {role: key for role, key in self.parents.items() if not role.startswith("trial")}

    @property
    def weight(self) -> int:
        """What it costs, in samples through the U-Net; scoring counts as one for each prompt."""
        return max(self.passes, len(self.prompts), 1)

    @property
    def key(self) -> str:
        """`kind/plugin-<short params>-<sha256>`."""
        if not self._key:
            frame = self._frame()
            digest = hashlib.sha256(self._around(frame).encode()).hexdigest()
            object.__setattr__(self, "_key", f"{frame.name}-{digest[:32]}")
        return self._key

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON values."""
        found: dict[str, Any] = json.loads(self.canonical())
        return found

    def noted(self) -> dict[str, Any]:
        """The identity as a result's marker keeps it: of a sexual suite without its texts, but with the whole hash."""
        if not self.is_sexual:
            return {"identity_of": self.identity()}
        digest = hashlib.sha256(self.canonical().encode()).hexdigest()
        return {"identity_of": veiled(self.identity()), "identity_sha256": digest}

    def canonical(self) -> str:
        """The identity as `canonical` writes it."""
        return self._around(self._frame())

    def _around(self, frame: "Frame") -> str:
        """The parents between the texts of a frame."""
        parents = ",".join([f"{quoted(role)}:{quoted(key)}" for role, key in sorted(self.parents.items())])
        return f"{frame.before}{{{parents}}}{frame.after}"

    def _frame(self) -> "Frame":
        """The texts around the parents: tasks that differ in these alone share them."""
        things = (self.fields, self.prompts, self.concept)
        names = (self.kind, self.plugin, self.version, self.base, self.seed, self.precision)
        found = FRAMES.of(things, names, self._texts)
        return found if found.fields == self.fields else self._texts()  # somebody has changed them since

    def _texts(self) -> "Frame":
        """Parts of the identity: what comes before the parents, and what comes after, in the order of the names."""
        before = {"base": self.base, "concept": self._concept(), "fields": dict(self.fields), "kind": self.kind}
        after = {
            "plugin": self.plugin,
            "precision": self.precision,
            "prompts": [self._prompt(p) for p in self.prompts],
            "schema": SCHEMA,
            "seed": self.seed,
            "version": self.version,
        }
        return Frame(
            fields=dict(self.fields),
            name=f"{self.kind}/{self.plugin}{self._short()}",
            before=f'{canonical(before)[:-1]},"parents":',
            after=f",{canonical(after)[1:]}",
        )

    def _prompt(self, prompt: Prompt) -> Any:
        """What a task can see of a prompt: a judge its label, the sampler the source of its seeds."""
        seen: Any = [prompt.text, prompt.source] if prompt.source else prompt.text
        if self.kind == "score":
            seen = [prompt.text, prompt.label]
        return [seen, prompt.own] if prompt.own else seen

    def _concept(self) -> list[Any] | None:
        """What a plug-in can see of the card: phrase, kind, labels; prompts enter through parents."""
        if self.concept is None:
            return None
        c = self.concept
        seen = [c.name, c.phrase, c.kind, c.scenario, sorted(c.labels.items()), list(c.wordings)]
        texts = [prompt.text for prompt in c.of("attacker")] if self.kind == "attack" else []
        classes = [sorted(c.classes.items())] if self.kind == "score" and c.classes else []
        return [*seen, list(c.paraphrases), c.subject, c.drawn, texts, *classes]

    def _short(self) -> str:
        """The concept and up to three scalar fields, for people who read the store."""
        words = [self.concept.phrase] if self.concept else []
        scalars = {k: v for k, v in self.fields.items() if isinstance(v, int | float | str) and v != ""}
        words += [f"{k}={v}" for k, v in sorted(scalars.items())][:3]
        clean = ["".join(c if c.isalnum() or c in "=.+" else "_" for c in word)[:24] for word in words]
        return "".join(f"-{word}" for word in clean)


def veiled(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with hashes for the prompts and for what it has of the card; one that has them stays as it is."""
    found = dict(identity)
    for name in ("prompts", "concept"):
        if found.get(name) and not isinstance(found[name], dict):
            found[name] = {"sha256": hashlib.sha256(canonical(found[name]).encode()).hexdigest()}
    return found
