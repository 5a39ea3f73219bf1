"""Families of models: one file each, found by the pipeline class that `model_index.json` names. Loads no torch.

A file of this folder says in literals, which are read from its text, what it loads:

    PIPELINES = ("StableDiffusionPipeline",)     pipeline classes
    PARTS = ("unet", "vae", "text_encoder")      folders of weights
    SETTINGS = ("tokenizer", "scheduler")        folders without weights
    FLAGS = ("force_zeros_for_empty_prompt",)    keys of model_index.json that change images
    OPTIONAL = ("text_encoder_3",)               folders that it reads where they are
    SCHEDULERS = ()                              its scheduler's classes; empty for Stable Diffusion's noise schedule
    LACKS = {"words": "T5 reads them"}           what a method may require, and a precision, that it has not (see
                                                 `benchmark.types.Requirement`), and why: refused with the plan;
                                                 what all U-Nets or all flows lack is below

All seven must be there. Two functions say how:

    pipeline(folder, **components) -> DiffusionPipeline   with diffusers' own loader, components given are not loaded
    model(pipe, scheduler) -> Model                       what methods see, derived from `benchmark.diffusion.Model`

Another family is another file.
"""

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

OF_UNETS = {"joint": "it is a U-Net, which attends to the text apart"}
OF_FLOWS = {
    "schedule": "it is a flow and has no noise schedule",
    "u-old": "it is a transformer",
    "apart": "text and image attend together",
    "float16": "a flow transformer overflows in it",
}
LITERALS = ("PIPELINES", "PARTS", "SETTINGS", "FLAGS", "OPTIONAL", "SCHEDULERS", "LACKS")


@dataclass(frozen=True)
class Family:
    """What a family's file says about itself."""

    name: str
    pipelines: tuple[str, ...]
    parts: tuple[str, ...]
    settings: tuple[str, ...]
    flags: tuple[str, ...]
    optional: tuple[str, ...]
    schedulers: tuple[str, ...]
    lacks: Mapping[str, str]

    @property
    def denoiser(self) -> str:
        """The folder of the network that predicts."""
        return self.parts[0]

    @property
    def is_flow(self) -> bool:
        """True for a family that predicts velocities."""
        return bool(self.schedulers)

    @property
    def folders(self) -> tuple[str, ...]:
        """What a model's folder must hold."""
        return self.parts + self.settings

    def present(self, folder: Path) -> tuple[str, ...]:
        """The optional folders that a model's folder has."""
        return tuple(part for part in self.optional if (folder / part).is_dir())

    def weights(self, folder: Path) -> tuple[str, ...]:
        """The folders of weights of a model's folder, with the optional ones that it has."""
        return (*self.parts, *(part for part in self.present(folder) if not part.startswith("tokenizer")))

    @property
    def module(self) -> Any:
        """The file itself, with its functions; importing it loads torch."""
        return importlib.import_module(f"benchmark.model.families.{self.name}")


@cache
def families() -> dict[str, Family]:
    """Every family, by each of its pipeline classes."""
    found = [described(file) for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem != "__init__"]
    return {pipeline: family for family in found for pipeline in family.pipelines}


def named(name: str) -> Family:
    """A family by the name of its file."""
    return next(family for family in families().values() if family.name == name)


def described(file: Path) -> Family:
    """The literals of a family's file."""
    values: dict[str, Any] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            name = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(name, ast.Name) and name.id in LITERALS:
                values[name.id] = ast.literal_eval(node.value)
    values["LACKS"] = {**(OF_FLOWS if values["SCHEDULERS"] else OF_UNETS), **values["LACKS"]}
    return Family(file.stem, *(values[name] for name in LITERALS))


def unsupported(index: dict[str, Any], place: object) -> str:
    """Why there is no family for a `model_index.json`."""
    return f"expected a model of {', '.join(families())}, got {index.get('_class_name')} in {place}"
