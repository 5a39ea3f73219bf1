"""A cell's model as a standard diffusers folder: what a user deploys, and what anybody can attack."""

import json
from pathlib import Path

from benchmark.artifacts import PROMPTS
from benchmark.errors import ConfigError, FolderError, StoreError, unknown
from benchmark.plan import Cell, Plan
from benchmark.stages import Bench


def find_cell(plan: Plan, name: str) -> Cell:
    """The cell of a name, `concept/defense/attack@budget#seed`; `concept/defense` is the cell before any attack.

    Raises:
        ConfigError: the plan has no such cell.
    """
    cells = {cell.name: cell for cell in plan.cells}
    for cell in plan.cells:
        if cell.budget == 0:
            cells.setdefault(f"{cell.concept.name}/{cell.defense}", cell)
    if name not in cells:
        raise ConfigError(unknown("cell", name, cells))
    return cells[name]


def export(plan: Plan, bench: Bench, cell: Cell, folder: Path) -> None:
    """Write the cell's defended, and possibly attacked, model to an empty `folder`; `from_pretrained` loads it.

    Raises:
        FolderError: the folder is not empty.
        StoreError: the cell has not been computed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"expected an empty folder at {folder}, got files: choose another --to.")
    task = plan.tasks[cell.images["concept"]]
    missing = [key for key in task.parents.values() if not bench.store.has(key)]
    if missing:
        raise StoreError(f"expected the results of {cell.name} in the store, got none: run the config first.")

    from diffusers import StableDiffusionPipeline

    model = bench.model_for(task)
    pipe = StableDiffusionPipeline.from_pretrained(
        bench.folder,
        unet=model.unet,
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipe.save_pretrained(folder)
    found = bench.snapshot(task).prompts
    if found:
        (folder / PROMPTS).write_text(json.dumps(found, indent=1))
