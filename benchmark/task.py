"""A task and its key: what is in the key decides what is computed again.

In the key: schema, kind, plug-in, its declared version, its fields, prompts, concept labels, seed, precision, the
base's weights, the parents' keys. Not in it: paths, device, batch size, worker count, time, names of cells.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from benchmark.types import Concept, Precision, Prompt

SCHEMA = 1
Kind = Literal["defend", "attack", "generate", "embed", "score"]


@dataclass(frozen=True, kw_only=True)
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
        label: how people see it; not in the key.
        passes: estimated samples through the U-Net; not in the key.
    """

    kind: Kind
    plugin: str
    version: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    base: str
    concept: Concept | None = None
    prompts: tuple[Prompt, ...] = ()
    seed: int = 0
    precision: Precision = "float32"
    parents: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    passes: int = 0

    @cached_property
    def key(self) -> str:
        """`kind/plugin-<short params>-<sha256>`."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return f"{self.kind}/{self.plugin}{self._short()}-{digest[:32]}"

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON values."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "plugin": self.plugin,
            "version": self.version,
            "fields": dict(self.fields),
            "base": self.base,
            "concept": self._concept(),
            "prompts": [self._prompt(p) for p in self.prompts],
            "seed": self.seed,
            "precision": self.precision,
            "parents": dict(self.parents),
        }

    def _prompt(self, prompt: Prompt) -> Any:
        """What a task can see of a prompt: a judge its label, the sampler the source of its seeds."""
        if self.kind == "score":
            return [prompt.text, prompt.label]
        return [prompt.text, prompt.source] if prompt.source else prompt.text

    def _concept(self) -> list[Any] | None:
        """What a plug-in can see of the card: phrase, kind, labels; prompts enter through parents."""
        if self.concept is None:
            return None
        c = self.concept
        seen = [c.name, c.phrase, c.kind, c.scenario, sorted(c.labels.items()), list(c.wordings)]
        texts = [prompt.text for prompt in c.of("attacker")] if self.kind == "attack" else []
        return [*seen, list(c.paraphrases), c.subject, c.drawn, texts]

    def _short(self) -> str:
        """The concept and up to three scalar fields, for people who read the store."""
        words = [self.concept.phrase] if self.concept else []
        scalars = {k: v for k, v in self.fields.items() if isinstance(v, int | float | str) and v != ""}
        words += [f"{k}={v}" for k, v in sorted(scalars.items())][:3]
        clean = ["".join(c if c.isalnum() or c in "=.+" else "_" for c in word)[:24] for word in words]
        return "".join(f"-{word}" for word in clean)
