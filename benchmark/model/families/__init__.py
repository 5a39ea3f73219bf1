"""Families of models: one file each, found by the pipeline class that `model_index.json` names. Loads no torch.

A file of this folder says in literals, which are read from its text, what it loads:

    PIPELINES = ("StableDiffusionPipeline",)     pipeline classes
    PARTS = ("unet", "vae", "text_encoder")      folders of weights
    SETTINGS = ("tokenizer", "scheduler")        folders without weights
    FLAGS = ("force_zeros_for_empty_prompt",)    keys of model_index.json that change images; all four must be there

and in two functions how:

    pipeline(folder, **components) -> DiffusionPipeline   with diffusers' own loader, components given are not loaded
    model(pipe, scheduler) -> Model                       what methods see, derived from `benchmark.diffusion.Model`

Another family is another file. One without a U-Net that predicts noise also needs its own sampler and methods that do
not ask for such a U-Net: `objections` says which do.
"""

import ast
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LITERALS = ("PIPELINES", "PARTS", "SETTINGS", "FLAGS")


@dataclass(frozen=True)
class Family:
    """What a family's file says about itself."""

    name: str
    pipelines: tuple[str, ...]
    parts: tuple[str, ...]
    settings: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """What a model's folder must hold."""
        return self.parts + self.settings

    @property
    def module(self) -> Any:
        """The file itself, with its functions; importing it loads torch."""
        return importlib.import_module(f"benchmark.model.families.{self.name}")


@cache
def families() -> dict[str, Family]:
    """Every family, by each of its pipeline classes."""
    found = [described(file) for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem != "__init__"]
    return {pipeline: family for family in found for pipeline in family.pipelines}


def described(file: Path) -> Family:
    """The literals of a family's file."""
    values: dict[str, tuple[str, ...]] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in LITERALS:
            values[node.targets[0].id] = ast.literal_eval(node.value)
    return Family(file.stem, *(values[name] for name in LITERALS))


def unsupported(index: dict[str, Any], place: object) -> str:
    """Why there is no family for a `model_index.json`."""
    known = ", ".join(families())
    what = "has a transformer that predicts velocities" if "transformer" in index else "is none of them"
    return (
        f"expected a model with a U-Net that predicts noise ({known}), "
        f"got {index.get('_class_name')} in {place}, which {what}"
    )


def objections(defenses: Iterable[Any], attacks: Iterable[Any]) -> str:
    """Which entries of a config need a U-Net that predicts noise, by the reason, and which would not."""
    reasons: dict[str, list[str]] = {}
    for defense in defenses:
        control = defense.method.fidelity == "control"
        reasons.setdefault(FREE if control else "train the U-Net", []).append(f"defense {defense.label}")
    for attack in attacks:
        reasons.setdefault(reason(attack.method), []).append(f"attack {attack.label}")
    free = reasons.pop(FREE, [])
    bound = "; ".join(f"{', '.join(labels)}: {why}" for why, labels in reasons.items())
    rest = f"; {', '.join(free)} would need no more than a sampler for it" if free else ""
    return f"{bound or 'no method of this config needs it'}{rest}"


FREE = "nothing"


def reason(attack: Any) -> str:
    """What an attack needs of a model that others than these families lack."""
    if attack.changes == "weights":
        return "train against the noise prediction"
    if attack.changes == "sampling":
        return "start inside a DDIM trajectory"
    if attack.changes == "none" or attack.access == "none" or not hasattr(attack, "search"):
        return FREE
    if attack.access == "text encoder":
        return "search in the tables of CLIP text encoders that the U-Net reads"
    return "search by the noise prediction"
