"""A cell's model as a standard diffusers folder: what a user deploys, and what anybody can attack.

A guard is no part of a model: the folder has the model under it, and `guard.json` beside, which says what stands in
front, with `modules.safetensors`, if it puts on extra layers.

An attack that learned adapters or words can be written alone, to be put on the defended model:

    pipe = DiffusionPipeline.from_pretrained(DEFENDED)       titer export CONFIG concept/defense --to DEFENDED
    pipe.load_lora_weights(ATTACK)                           pytorch_lora_weights.safetensors
    pipe.load_textual_inversion(ATTACK)                      learned_embeds.safetensors, and for a second text encoder
    pipe.load_textual_inversion(                             learned_embeds_2.safetensors
        ATTACK, weight_name="learned_embeds_2.safetensors", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from benchmark.errors import ConfigError, FolderError, StoreError, unknown
from benchmark.model.weights import family_of
from benchmark.plan import Cell, Plan
from benchmark.runner.stages import Bench
from benchmark.store.artifacts import ADAPTER, PROMPTS, WORDS, load_guard, save_guard
from benchmark.store.files import share
from benchmark.types import Snapshot


def find_cell(plan: Plan, name: str) -> Cell:
    """The cell of a name, `concept/defense/attack@budget#seed`; `concept/defense` is the cell before any attack.

    Raises:
        ConfigError: the plan has no such cell.
    """
    cells = {cell.name: cell for cell in plan.cells}
    for cell in plan.cells:
        if cell.budget == 0:
            cells.setdefault(f"{cell.concept.called}/{cell.defense}", cell)
    if name not in cells:
        raise ConfigError(unknown("cell", name, cells))
    return cells[name]


def export(plan: Plan, bench: Bench, cell: Cell, folder: Path, *, attack_only: bool = False) -> None:
    """Write the cell's defended, and possibly attacked, model to an empty `folder`; `from_pretrained` loads it.

    Args:
        plan: where the cell is from.
        bench: the base and the store.
        cell: one of `find_cell`.
        folder: new or empty.
        attack_only: write what the attack learned, as files for the defended model, instead of a whole model.

    Raises:
        FolderError: the folder is not empty, or is in the store.
        StoreError: the cell has not been computed.
        ConfigError: the attack alone was asked for, and learned neither adapters nor words nor prompts.
    """
    bench.store.refuse(folder, "--to")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"expected an empty folder at {folder}, got files: choose another --to.")
    task = plan.tasks[cell.images["concept"]]
    missing = [key for key in task.parents.values() if not bench.store.has(key)]
    if missing:
        raise StoreError(f"expected the results of {cell.name} in the store, got none: run the config first.")
    snapshots = bench.snapshots(task)
    if attack_only:
        save_attack(bench, cell, snapshots, folder)
    else:
        model = bench.model_for(task)
        family_of(bench.folder).module.pipeline(bench.folder, **model.components).save_pretrained(folder)
        for guard in filter(None, (load_guard(bench.store.path(key)) for key in bench.lineage(task))):
            save_guard(folder, *guard)
    found = [text for snapshot in snapshots[-1:] for text in snapshot.prompts]
    if found:
        (folder / PROMPTS).write_text(json.dumps(found, indent=1))
    share(folder)


def save_attack(bench: Bench, cell: Cell, snapshots: list[Snapshot], folder: Path) -> None:
    """Write adapters and words as diffusers loads them: one file for the adapters, one for each word and encoder.

    Raises:
        ConfigError: there are none, or whole weights beside them.
    """
    adapters = {name: pair for s in snapshots for name, pair in s.delta.low_rank.items()}
    words = {word: vector for s in snapshots for word, vector in s.tokens.items()}
    if any(s.delta.dense for s in snapshots) or not (adapters or words or any(s.prompts for s in snapshots)):
        got = "whole weights" if any(s.delta.dense for s in snapshots) else "none of them"
        raise ConfigError(
            f"expected adapters, words or prompts that the attack of {cell.name} learned, got {got}: export the model."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if adapters:
        factors = {f"{name}.lora_A.weight": down.contiguous() for name, (down, _) in adapters.items()}
        factors |= {f"{name}.lora_B.weight": up.contiguous() for name, (_, up) in adapters.items()}
        save_file(factors, folder / ADAPTER)
    stem, _, ending = WORDS.partition(".")
    for number, (word, vector) in enumerate(words.items()):
        for (_, encoder), row in zip(bench.base.readers, bench.base.by_encoder(vector), strict=True):
            which = encoder.removeprefix("text_encoder") + (f"-{number}" if number else "")
            save_file({word: row.contiguous()}, folder / f"{stem}{which}.{ending}")
